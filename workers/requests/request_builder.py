"""The one validator beneath every protocol: a prompt and its parameters → engine requests.

`LLM` and every ingress use this same class, which is free of Ray, gRPC and FastAPI. Its methods may be called
from several threads at once, and tokenize in the caller's thread.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from tandem.errors import BAD_PROMPT, InvalidRequest, ModelNotFound
from tandem.inputs import (
    MultiModalData,
    Prompt,
    PromptSide,
    RequestOptions,
    SingletonPrompt,
    TaskOptions,
    TextPrompt,
    TokensPrompt,
)
from tandem.limits import DEFAULT_LIMITS, Limits
from tandem.outputs import Parse
from tandem.params import Params, Pooling, SamplingParams
from tandem.workers.request import Decoding, EncodeRequest, EngineRequest
from tandem.workers.requests.answers.detokenizer import Detokenizer, Vocabulary
from tandem.workers.requests.answers.document_fields import DocumentFields
from tandem.workers.requests.answers.embedding import PreparedEmbedding, check_pooling
from tandem.workers.requests.answers.output_processor import OutputProcessor, PreparedRequest
from tandem.workers.requests.answers.page_text import PageText
from tandem.workers.requests.languages.markers import split_target
from tandem.workers.requests.media import MediaProcessor, read_processor
from tandem.workers.requests.model_info import ModelInfo
from tandem.workers.requests.parameters.decoding import (
    check_counts,
    check_ids,
    completed,
    decoding_of,
    default_max_tokens,
    scoring_of,
)
from tandem.workers.requests.parameters.options import CheckedOptions, check_options
from tandem.workers.requests.prompts.chat import (
    ChatTemplate,
    Conversation,
    read_messages,
    sole_text,
    take_processors_template,
)
from tandem.workers.requests.prompts.image_places import ImagePlaces
from tandem.workers.requests.prompts.image_tasks import ImageTasks, with_tokenizers_ends
from tandem.workers.requests.prompts.prompt_reader import ParsedPrompt, PromptReader
from tandem.workers.requests.prompts.tokenizer import TextTokenizer, check_text, read_tokenizers
from tandem.workers.requests.segmentation.segments import Document, Split, check_split, segment, within
from tandem.workers.requests.tasks import ResolvedTask, Tasks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ModelInfo",
    "OutputProcessor",
    "PreparedRequest",
    "RequestBuilder",
    "Tasks",
    "check_text",
    "naming_prompt",
    "sample_seed",
]

_LEAST_SEGMENT_TOKENS = 16  # however little a model generates by default


class RequestBuilder:
    """Checks, tokenizes and completes requests for one model."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits = DEFAULT_LIMITS,
        target: PreTrainedTokenizerBase | None = None,
        processor: MediaProcessor | None = None,
        image_tasks: ImageTasks | None = None,
        image_places: ImagePlaces | None = None,
        parse: Parse | None = None,
    ) -> None:
        """`target` is the decoder's tokenizer, where that is another; `processor` is for a model that reads
        media, `image_tasks` for one whose prompts name them, `image_places` for one whose text has images
        within it, `parse` for one whose every answer holds values."""
        self.info, self.limits, self.processor = info, limits, processor
        self._image_places = image_places
        self.vocabulary = Vocabulary(tokenizer if target is None else target)
        self.tasks = Tasks.of(info.tasks, info.defaults, tokenizer, info.speech)
        self.chat_template = ChatTemplate(tokenizer)
        self._tokenizer = TextTokenizer(tokenizer, target)
        languages = bool(self.tasks.languages)
        self._reader = PromptReader(
            info,
            self._tokenizer,
            limits,
            processor,
            languages=languages,
            image_tasks=image_tasks,
            image_places=image_places,
            parse=parse,
        )
        self.max_encoder_tokens = self._reader.max_encoder_tokens
        self.max_prompt_tokens = self._reader.max_prompt_tokens
        self.max_decoder_tokens = self._reader.max_decoder_tokens

    @classmethod
    def load(
        cls,
        folder: str | Path,
        served_name: str,
        limits: Limits = DEFAULT_LIMITS,
        overrides: Mapping[str, Any] | None = None,
        tokenizer: str | Path | None = None,
    ) -> RequestBuilder:
        """Reads a model's folder, all but its weights. Raises ModelLoadError.

        overrides: decoding defaults that come before the model's own, under transformers' names.
        tokenizer: the folder or hub id of a tokenizer that is not in the model's folder.
        """
        folder = Path(folder)
        info = ModelInfo.read(folder, served_name, overrides)
        source, target = read_tokenizers(folder, tokenizer)
        info = with_tokenizers_ends(info, source)
        if info.front is not None:
            take_processors_template(source, folder)
        image_tasks = ImageTasks.read(folder, info, source)
        image_places = ImagePlaces.of(info.front, source)
        parse: Parse | None = None
        if info.modalities == {"image"}:
            parse = DocumentFields.read(folder, source) or PageText.read(folder, source)
        processor = read_processor(folder, info.front)
        return cls(info, source, limits, target, processor, image_tasks, image_places, parse)

    def prepare(
        self,
        prompt: Prompt,
        params: Params | None = None,
        **options: Unpack[RequestOptions],
    ) -> PreparedRequest:
        """Checks everything there is to check about a request, and fills in every default. The model's own
        way of decoding, or the task's, holds unless `params` choose another: see `completed`.

        The options may name one of the model's `task_specific_params`, or the languages of a translation:
        codes of its tokenizer, or those that name a task. What the model wants to read for them is put before
        a text; token ids are taken as they are. For `truncate_prompt_tokens` see `LLM.generate`.

        Raises InvalidRequest, naming the field and the limit, and ModelNotFound.
        """
        self.check_model(options.get("model"))
        checked = check_options(self.limits, self.tasks, **options)
        task = checked.task
        params = completed(params, task.defaults)
        check_counts(params, self.limits)

        given = self._reader.read(prompt, task, checked.truncate, params.max_tokens)
        decoding = self._decoding(params, task, given)
        self._check_answer(params.outputs, decoding)

        samples = params.n if isinstance(params, SamplingParams) else 1
        seed = secrets.randbits(63) if params.seed is None else params.seed
        sequences = [(replace(decoding, seed=seed), ())]
        # The samples' prompt is the same: the first sample has its log-probabilities.
        sequences += [
            (replace(decoding, seed=sample_seed(seed, index), prompt_logprobs=None), ())
            for index in range(1, samples)
        ]
        return _prepared(
            checked,
            given,
            sequences,
            outputs=params.outputs,
            stop=(isinstance(params, SamplingParams) and params.stop) or task.defaults.stop,
            skip_special_tokens=params.skip_special_tokens,
            parse=given.parse,
        )

    def prepare_score(
        self,
        prompt: Prompt,
        targets: Sequence[SingletonPrompt],
        **options: Unpack[RequestOptions],
    ) -> PreparedRequest:
        """Checks a request to score targets for a prompt; the options are as for `prepare`.

        A target that is text gets the special tokens that the tokenizer gives a label, such as EOS and the
        target language; for a decoder-only model, where it goes on from the prompt, none. Token ids are taken
        as they are.

        Raises InvalidRequest, naming the field and the limit, and ModelNotFound.
        """
        self.check_model(options.get("model"))
        checked = check_options(self.limits, self.tasks, **options)
        task = checked.task
        if not 0 < len(targets) <= self.limits.targets:
            raise InvalidRequest(f"1 to {self.limits.targets} targets, got {len(targets)}", field="targets")
        given = self._reader.read(prompt, task, checked.truncate)
        if given.opening:
            raise InvalidRequest("is needed: targets follow it", field="source_language")
        ids = [
            self._reader.target_ids(target, f"targets.{number}", given, task)
            for number, target in enumerate(targets)
        ]
        sequences = [(scoring_of(len(target)), tuple(target)) for target in ids]
        return _prepared(checked, given, sequences, outputs=len(ids))

    def segment(self, text: str, split: Split, **options: Unpack[TaskOptions]) -> Document:
        """A text as the segments that are translated each by itself, and what stands between them.

        `split` is "sentence" or "line", for models that translate sentences, or "none", which leaves the text
        whole. The options are those of the segments' requests; a token with which the text chooses its target
        stands before each. Raises InvalidRequest, naming the field.
        """
        check_split(split)
        check_text(text, "prompt")
        task = self.tasks.resolve(**options)
        most = self.segment_tokens(task)
        fits = within(most, lambda part: len(self._tokenizer.encode(part, "prompt", most, special=False)))
        of_task = (pair.source for pair in self.tasks.pairs if pair.task == task.task)
        source = options.get("source_language") or next(of_task, None)
        chosen, text = split_target(text) if any(pair.prefix for pair in self.tasks.pairs) else ("", text)
        document = segment(text, split, language=source, fits=fits, most=self.limits.segments)
        return replace(document, segments=tuple(chosen + part for part in document.segments))

    @cached_property
    def max_segment_tokens(self) -> int:
        """The least of its translation tasks' `segment_tokens`."""
        tasks = [pair.task for pair in self.tasks.pairs] or [None]
        return min(self.segment_tokens(self.tasks.resolve(task=task)) for task in tasks)

    def segment_tokens(self, task: ResolvedTask) -> int:
        """Longest segment of a translated text, special tokens and the task's text not counted: what the
        tokenizer's makers had in mind, and half of what the model generates at most, because translations may
        be longer than their sources."""
        source = task.source
        around = len(source.prefix) + len(source.suffix) if source else 0
        around += len(
            self._tokenizer.encode(task.prefix, "prompt", self.max_encoder_tokens, special=not source)
        )
        room = min(self.max_encoder_tokens, self._tokenizer.max_length) - around
        answer = default_max_tokens(task.defaults, 1, self.max_decoder_tokens - 1)
        return max(1, min(room, max(answer // 2, _LEAST_SEGMENT_TOKENS)))

    def prepare_embed(
        self, prompts: Sequence[Prompt], pooling: Pooling = "mean", **options: Unpack[RequestOptions]
    ) -> PreparedEmbedding:
        """Checks a request for the encoder's hidden states of prompts; the options are as for `prepare`.

        Raises InvalidRequest, naming the field and the limit, and ModelNotFound.
        """
        self.check_model(options.get("model"))
        checked = check_options(self.limits, self.tasks, **options)
        check_pooling(pooling)
        if self.info.encoder_width is None:
            raise InvalidRequest(
                f"{self.info.name!r} is decoder-only: it has no encoder whose states could be given",
                field="model",
            )
        most = self.limits.embeddings
        if not 0 < len(prompts) <= most:
            raise InvalidRequest(f"1 to {most} prompts, got {len(prompts)}", field="prompts")
        read = [
            self._embedded(prompt, number, len(prompts), checked) for number, prompt in enumerate(prompts)
        ]
        inputs = [one.encoder for one in read]
        rows = sum(len(one.token_ids) for one in inputs) if pooling == "none" else len(inputs)
        if (values := rows * self.info.encoder_width) > (limit := self.limits.embedding_values):
            raise InvalidRequest(
                f"{rows} embeddings of {self.info.encoder_width} have {values} numbers, the limit is {limit}",
                field="prompts",
            )
        return PreparedEmbedding(
            checked.request_id,
            pooling,
            [
                EncodeRequest(one, checked.priority, checked.timeout_s, number, len(inputs))
                for number, one in enumerate(inputs)
            ],
            sum(one.media_tokens for one in read),
        )

    @property
    def reads_images(self) -> bool:
        return "image" in self.info.modalities

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template, or reads images, with one message for its prompt."""
        return self.chat_template.exists or self.reads_images

    def chat_prompt(self, conversation: Conversation) -> Prompt:
        """The prompt that a conversation is by the model's chat template, or its only message where there is
        none. Raises InvalidRequest and RequestTooLarge."""
        read = read_messages(conversation.messages, self.limits, images=self.reads_images)
        media = MultiModalData(image=list(read.images))
        places, field, count = self._image_places, "messages", len(read.images)
        if not self.chat_template.exists:
            token = places.token if places is not None else None
            if (token_id := self.info.media_token_id) is not None:
                token = self._tokenizer.token_strings([token_id])[0]
            text = sole_text(conversation, read, self.info.name, token)
            return TextPrompt(prompt=text, multi_modal_data=media)
        text = self.chat_template.render(conversation, read.messages)
        if places is not None:
            text = places.text(text, count, field)
        ids = self._tokenizer.encode(text, field, self.max_prompt_tokens, special=False)
        if places is not None:
            ids = places.spread(ids, count, field)
        return TokensPrompt(prompt_token_ids=ids, multi_modal_data=media)

    def tokenize(self, text: str, *, field: str = "text", special: bool = True) -> list[int]:
        """The ids a prompt's text becomes, `special` tokens included. Raises InvalidRequest."""
        if special:
            return self._reader.prompt_ids(PromptSide(text, None), field, field, self.tasks.resolve())
        ids, limit = (
            self._tokenizer.encode(text, field, self.max_prompt_tokens, special=False),
            self.max_prompt_tokens,
        )
        if not 0 < len(ids) <= limit:
            raise InvalidRequest(f"has {len(ids)} tokens, the limits are 1 and {limit}", field=field)
        return ids

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """An encoder input's tokens, as its tokenizer writes them."""
        return self._tokenizer.token_strings(ids)

    def detokenize(
        self, ids: Sequence[int], *, field: str = "token_ids", skip_special_tokens: bool = False
    ) -> str:
        """The text of ids that the decoder generates, as the tokenizer's `decode` gives it. Raises
        InvalidRequest, for what it takes for no token, too."""
        check_ids(ids, field, self.info.vocab_size)
        known = frozenset(self.vocabulary.tokens(ids))
        for index, token_id in enumerate(ids):
            if token_id not in known:
                raise InvalidRequest(f"id {token_id} at {index} is no token of the tokenizer", field=field)
        detokenizer = Detokenizer(self.vocabulary, skip_special_tokens=skip_special_tokens)
        return detokenizer.push(ids) + detokenizer.flush()

    def decoder_ids(self, text: str, field: str, limit: int) -> list[int]:
        """The decoder's ids for a text, special tokens not added. Raises InvalidRequest, naming the field,
        for more than the limit."""
        ids = self._tokenizer.encode(text, field, limit, special=False, target=True)
        if len(ids) > limit:
            raise InvalidRequest(f"{text[:60]!r} has {len(ids)} tokens, the limit is {limit}", field=field)
        return ids

    def output_processor(self, prepared: PreparedRequest) -> OutputProcessor:
        """What turns this request's deltas into its answer."""
        return OutputProcessor(self.vocabulary, prepared)

    def check_model(self, model: str | None) -> None:
        """Raises ModelNotFound unless this is the model served; None and "" mean the only one."""
        if model and model != self.info.name:
            raise ModelNotFound(f"no model {model[:80]!r}; this server has {self.info.name!r}", field="model")

    # -- the parts of a request

    def _embedded(self, prompt: Prompt, number: int, prompts: int, checked: CheckedOptions) -> ParsedPrompt:
        with naming_prompt(number, prompts):
            given = self._reader.read(prompt, checked.task, checked.truncate)
            if given.context:
                raise InvalidRequest("the encoder reads none", field="decoder_prompt")
            return given

    def _decoding(self, params: Params, task: ResolvedTask, given: ParsedPrompt) -> Decoding:
        def encode(text: str, name: str) -> list[int]:
            return self.decoder_ids(text, name, self.limits.bad_word_tokens)

        prefix, opening = given.prefix, len(given.opening)
        unscored = isinstance(params, SamplingParams) and params.prompt_logprobs is not None
        if unscored and max(prefix) >= self.info.vocab_size:
            raise InvalidRequest("is not for prompts with media tokens", field="prompt_logprobs")
        room = self.max_decoder_tokens - len(prefix) - opening
        decoding = decoding_of(params, task.defaults, prefix, room, self.info, encode)
        if opening:  # it comes on top of what a request bounds, as where the prefix has it
            decoding = replace(
                decoding,
                opening_ids=given.opening,
                max_tokens=decoding.max_tokens + opening,
                min_tokens=decoding.min_tokens and decoding.min_tokens + opening,
            )
        if self.info.front is not None and self.info.encoder_vocab_size is None:
            if params.encoder_no_repeat_ngram_size:
                raise InvalidRequest("the encoder reads no tokens", field="encoder_no_repeat_ngram_size")
            decoding = replace(decoding, encoder_no_repeat_ngram_size=0)
        target = task.target
        if target is None or target.token_id in prefix[:2]:
            return decoding
        if params.forced_bos_token_id is not None:
            raise InvalidRequest("does not go with target_language", field="forced_bos_token_id")
        return replace(decoding, forced_bos_id=target.token_id)

    def _check_answer(self, outputs: int, decoding: Decoding) -> None:
        each, limit = 1 + (decoding.logprobs or 0), self.limits.answer_values
        if (values := outputs * decoding.max_tokens * each) > limit:
            raise InvalidRequest(
                f"{outputs} answers of {decoding.max_tokens} tokens with {each - 1} logprobs have {values} "
                f"values, the limit is {limit}: lower max_tokens, n or logprobs",
                field="max_tokens",
            )


def _prepared(
    checked: CheckedOptions,
    given: ParsedPrompt,
    sequences: Iterable[tuple[Decoding, tuple[int, ...]]],
    *,
    outputs: int,
    stop: Sequence[str] = (),
    skip_special_tokens: bool = True,
    parse: Parse | None = None,
) -> PreparedRequest:
    """`sequences`: for each how it is decoded, and its target, which is empty where it is generated."""
    return PreparedRequest(
        request_id=checked.request_id,
        encoder_prompt=given.encoder_text,
        encoder_prompt_token_ids=given.encoder_ids,
        prompt=given.decoder_text,
        prompt_token_ids=given.prefix,
        context_ids=given.context,
        sequences=[
            EngineRequest(
                request_id=checked.engine_id(index),
                encoder=given.encoder,
                prefix_ids=tuple(given.prefix),
                decoding=decoding,
                cross_spans=given.cross_spans,
                target_ids=target,
                priority=checked.priority,
                timeout_s=checked.timeout_s,
            )
            for index, (decoding, target) in enumerate(sequences)
        ],
        outputs=outputs,
        stop=stop,
        skip_special_tokens=skip_special_tokens,
        parse=parse,
        media_tokens=given.media_tokens,
    )


@contextmanager
def naming_prompt(number: int, prompts: int) -> Iterator[None]:
    """Adds to a refusal which of several prompts is at fault; `number` counts from 0."""
    try:
        yield
    except BAD_PROMPT as error:
        where = f" (in prompt {number + 1} of {prompts})" if prompts > 1 else ""
        raise type(error)(error.message + where, field=error.field) from None


def sample_seed(seed: int, index: int) -> int:
    """The seed of a request's sample. The first sample has the request's own, so that asking for more samples
    does not change it; the others have BLAKE2b-64 of both numbers, little-endian, without its top bit."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(4, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1
