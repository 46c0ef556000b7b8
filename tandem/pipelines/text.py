"""transformers 4's text-to-text pipelines: their calls and their results."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

from tandem.errors import InvalidRequest, renaming_fields
from tandem.generate_arguments import ARGUMENTS, to_params
from tandem.inputs import Prompt, TaskOptions, TokensPrompt
from tandem.offline import LLM
from tandem.params import Params
from tandem.pipelines.owner import ModelOwner
from tandem.workers.requests.parameters.defaults import merged
from tandem.workers.requests.segmentation.segments import SPLITS, Document
from tandem.workers.requests.tasks import ResolvedTask

Record = dict[str, str]

# What the text is called in a result.
KEYS: Final[Mapping[str, str]] = {
    "summarization": "summary_text",
    "translation": "translation_text",
    "text2text-generation": "generated_text",
    "text-generation": "generated_text",
}
_TRANSLATION: Final = re.compile(r"translation_([\w-]+)_to_([\w-]+)")
# What a call takes besides the arguments of `generate`. Batches form by themselves: batch_size has no effect.
_CALL: Final = frozenset(
    {
        "truncation",
        "clean_up_tokenization_spaces",
        "batch_size",
        "src_lang",
        "tgt_lang",
        "return_full_text",
        "split",
    }
)


CALL_ARGUMENTS: Final = ARGUMENTS | _CALL


def is_task(task: str) -> bool:
    return _key(task) in KEYS.values()


def _key(task: str) -> str:
    """What a task's text is called in a result."""
    return KEYS.get("translation" if _TRANSLATION.fullmatch(task) else task, "")


class Pipeline(ModelOwner):
    """`pipeline` makes it. `close` (or `with`) ends the worker processes of a model that it has loaded."""

    def __init__(self, task: str, llm: LLM, arguments: Mapping[str, Any], *, owned: bool) -> None:
        super().__init__(task, llm, owned=owned)
        self.tokenizer: Any = llm.get_tokenizer()
        self._target_tokenizer: Any = llm.get_tokenizer(target=True)
        self._lock = threading.Lock()  # around the tokenizer, which remembers how it cut last
        self._key, self._arguments = _key(task), dict(arguments)
        encoder_decoder = not llm.info.decoder_only
        self._continues = task == "text-generation"
        self._sequences = "generated_sequence" if self._continues else "output_ids"  # a key of `forward`'s
        if self._continues == encoder_decoder:
            kind = "text2text-generation" if encoder_decoder else "text-generation"
            raise InvalidRequest(f"{task} is not what this model does; it does {kind}", field="task")

    def __call__(self, inputs: str | Iterable[str], **arguments: Any) -> list[Any]:
        """Texts to texts.

        Args:
            inputs: one text, or several.
            arguments: the arguments of transformers' `generate` that Tandem has, such as max_new_tokens,
                min_length, do_sample, num_beams, num_return_sequences; truncation, to cut an input that
                is too long instead of refusing it; clean_up_tokenization_spaces; src_lang and tgt_lang
                for translation; return_full_text for text-generation; batch_size, without effect. They go
                before the pipeline's own, then the model's for this task, then the model's.
                split is for translation: "sentence" (the default) translates a text sentence by sentence,
                "line" as many sentences of a line together as the model is made for, "none" all at
                once, as transformers does.

        For one text a list with a dict for each returned sequence. For several a list with a dict for
        each text, or, in text-generation or with several returned sequences, a list for each.

        Raises InvalidRequest, naming the argument, before anything is generated.
        """
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        given, call = self._split(arguments)
        options = self._task_options(call)
        resolved = self._resolve(options)
        prompts, params = [], []
        documents = [self._document(text, call, options) for text in texts]
        for segment in (segment for document in documents for segment in document.segments):
            prompt, counted = self._prompt(segment, resolved, call)
            prompts.append(prompt)
            params.append(_params(given, counted, resolved))
        if _truncates(call):
            options = _of_ids(options, resolved)
        with _arguments_named():
            outputs = iter(self.llm.generate(prompts, params, **options, use_tqdm=False))
        samples = (params or [_params(given, 1, resolved)])[0].outputs
        results = []
        for text, document in zip(texts, documents, strict=True):
            own = list(islice(outputs, len(document.segments)))
            output = document.output(text, own, samples)
            results.append(self._records(text, [sample.text for sample in output.outputs], call))
        if isinstance(inputs, str):
            return results[0]
        if not self._continues and all(len(records) == 1 for records in results):
            return [records[0] for records in results]
        return results

    def preprocess(self, text: str, **arguments: Any) -> dict[str, Any]:
        """The first part of a call: what the model reads of a text.

        Args:
            arguments: as for a call; those of `generate` have no effect here.

        `input_ids` and `attention_mask`, lists [1, tokens], with the task's text and the special tokens, and
        `prompt_text`, the text. Raises InvalidRequest, naming the argument.
        """
        _, call = self._split(arguments)
        resolved = self._resolve(self._task_options(call))
        with self._lock:
            ids = self._ids(text, resolved, self._most if _truncates(call) else None)
        return {"input_ids": [ids], "attention_mask": [[1] * len(ids)], "prompt_text": text}

    def forward(self, model_inputs: Mapping[str, Any], **arguments: Any) -> dict[str, Any]:
        """The second part of a call: ids to ids.

        Args:
            model_inputs: what `preprocess` returned.
            arguments: as for a call.

        `output_ids`, lists [1, returned sequences, tokens] that begin with the decoder's start token, or for
        text-generation `generated_sequence`, which begin with the prompt; `input_ids` and `prompt_text` as
        they were. Raises InvalidRequest, naming the argument.
        """
        given, call = self._split(arguments)
        options = self._task_options(call)
        resolved = self._resolve(options)
        [ids] = model_inputs["input_ids"]
        params = _params(given, len(ids) if self._continues else 1, resolved)
        (output,) = self.llm.generate(
            TokensPrompt(prompt_token_ids=list(ids)), params, **_of_ids(options, resolved)
        )
        sequences = [[*output.prompt_token_ids, *sample.token_ids] for sample in output.outputs]
        kept = {name: model_inputs[name] for name in ("input_ids", "prompt_text")}
        return {self._sequences: [sequences], **kept}

    def postprocess(self, model_outputs: Mapping[str, Any], **arguments: Any) -> list[Record]:
        """The last part of a call: ids to a dict for each returned sequence.

        Args:
            model_outputs: what `forward` returned.
            arguments: as for a call; those of `generate` have no effect here.
        """
        _, call = self._split(arguments)
        [prompt] = model_outputs["input_ids"] if self._continues else [[]]
        [sequences] = model_outputs[self._sequences]
        start = len(self._decode(prompt))
        texts = [self._decode(ids if prompt else ids[1:])[start:] for ids in sequences]
        return self._records(model_outputs["prompt_text"], texts, call)

    def _task_options(self, call: Mapping[str, Any]) -> TaskOptions:
        """Task or languages, as `LLM.generate` takes them."""
        tasks = self.llm.tasks
        match = _TRANSLATION.fullmatch(self.task)
        source, target = (call.get("src_lang"), call.get("tgt_lang")) if match is None else match.groups()
        both = source is not None and target is not None
        if (both and tasks.languages) or (
            (source or target) is not None and tasks.pairs and not tasks.languages
        ):
            return TaskOptions(source_language=source, target_language=target)
        if self.task == "translation" and tasks.languages:
            raise InvalidRequest("this model needs src_lang and tgt_lang", field="src_lang")
        return TaskOptions(task=self.task if self.task in tasks else None)

    def _resolve(self, options: TaskOptions) -> ResolvedTask:
        with renaming_fields({"source_language": "src_lang", "target_language": "tgt_lang"}):
            return self.llm.tasks.resolve(**options)

    def _document(self, text: str, call: Mapping[str, Any], options: TaskOptions) -> Document:
        _check_text(text)
        split = call.get("split")
        if self._key != "translation_text":
            if split is not None:
                raise InvalidRequest("is for translation", field="split")
            return Document((text,), ("", ""))
        if split is not None and split not in SPLITS:
            raise InvalidRequest(f"must be one of {', '.join(SPLITS)}, got {split!r}", field="split")
        with _arguments_named():
            return self.llm.segment(text, split or "sentence", **options)

    def _split(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of `generate` and the pipeline's own, for one call."""
        given = merged(self._arguments, arguments)
        call = {name: given.pop(name) for name in list(given) if name in _CALL}
        if unknown := sorted(given.keys() - ARGUMENTS):
            raise InvalidRequest("unknown parameter", field=unknown[0])
        return given, call

    @property
    def _most(self) -> int:
        """Tokens of the longest input."""
        return int(min(self.tokenizer.model_max_length, self.llm.max_encoder_tokens))

    def _prompt(self, text: str, resolved: ResolvedTask, call: Mapping[str, Any]) -> tuple[Prompt, int]:
        """The prompt, and the number of tokens that `max_length` counts before the first new one."""
        with self._lock:
            if _truncates(call):
                ids = self._ids(text, resolved, self._most)
                prompt: Prompt = TokensPrompt(prompt_token_ids=ids, prompt=text)
                return prompt, len(ids) if self._continues else 1
            # 1 is the decoder's start token.
            return text, len(self._ids(text, resolved, None)) if self._continues else 1

    def _ids(self, text: str, resolved: ResolvedTask, most: int | None) -> list[int]:
        """A text's tokens, special ones included: the first `most`, or all."""
        _check_text(text)
        source = resolved.source
        before, after = (source.prefix, source.suffix) if source else ((), ())
        ids = self.tokenizer(
            resolved.input(text),
            add_special_tokens=source is None,  # else the prefix and the suffix are added
            truncation=most is not None,
            max_length=None if most is None else most - len(before) - len(after),
        )["input_ids"]
        return [*before, *ids, *after]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._target_tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _records(self, text: str, generated: Sequence[str], call: Mapping[str, Any]) -> list[Record]:
        if call.get("clean_up_tokenization_spaces"):
            generated = [self.tokenizer.clean_up_tokenization(one) for one in generated]
        before = text if self._continues and call.get("return_full_text", True) else ""
        return [{self._key: before + one} for one in generated]


@contextmanager
def _arguments_named() -> Iterator[None]:
    """Errors name the arguments of a call, not the request's fields."""
    try:
        with renaming_fields({"prompt": "inputs", "truncate_prompt_tokens": "truncation"}):
            yield
    except InvalidRequest as error:
        message = error.message.replace("set truncate_prompt_tokens", "set truncation=True")
        raise InvalidRequest(message, field=error.field) from None


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise InvalidRequest(f"must be str, got {type(text).__name__}", field="inputs")


def _params(given: Mapping[str, Any], counted: int, resolved: ResolvedTask) -> Params:
    """The parameters of one text; `counted` tokens of `max_length` are there before the first new one."""
    own = resolved.defaults
    return to_params(given, counted, beams=own.beams, sampling=own.temperature > 0)


def _of_ids(options: TaskOptions, resolved: ResolvedTask) -> TaskOptions:
    """The options that go with ids, which hold the task's text and the source language's tokens."""
    return TaskOptions(
        task=resolved.task, target_language=options.get("target_language") if resolved.target else None
    )


def _truncates(call: Mapping[str, Any]) -> bool:
    value = call.get("truncation", False)
    if value not in (True, False, "longest_first", "only_first", "do_not_truncate"):
        raise InvalidRequest(f"must be True, False or a strategy's name, got {value!r}", field="truncation")
    return value not in (False, "do_not_truncate")
