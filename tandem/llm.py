"""`LLM`: the engine in this process, for offline work. No cluster, no Ray."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack, cast

from tqdm import tqdm

from tandem.errors import InvalidRequest
from tandem.inputs import Prompt, SingletonPrompt, TaskOptions
from tandem.limits import DEFAULT_LIMITS, Limits
from tandem.outputs import EmbeddingOutput, RequestOutput, ScoreOutput, TextDelta
from tandem.params import Params, Pooling, for_each
from tandem.transcribing import Transcribing
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.engine import Engine
from tandem.workers.execution.runner import Runner
from tandem.workers.local_group import LocalGroup
from tandem.workers.models.model_folder import QUICKSTART, resolve
from tandem.workers.request import EngineStats
from tandem.workers.requests.embedding import embedding_output
from tandem.workers.requests.request_builder import (
    ModelInfo,
    OutputProcessor,
    PreparedRequest,
    RequestBuilder,
    Tasks,
)
from tandem.workers.requests.scoring import score_output
from tandem.workers.requests.segmentation.segments import Document, Split
from tandem.workers.requests.tokenizer import read_tokenizers
from tandem.workers.shared_engine import SharedEngine
from tandem.workers.transcription.builder import TranscriptionBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROGRESS_FROM = 4  # prompts; with fewer a progress bar is noise

_OneOrEach = str | Sequence[str | None] | None


class LLM(Transcribing):
    """A model, ready to generate.

    Example:
        with LLM() as llm:  # the bundled quickstart model; or LLM("path/or/hub-id")
            for output in llm.generate(["translate English to French: Good morning."]):
                print(output.outputs[0].text)

    Threads may share it: their requests are decoded in one batch. `close` (or `with`) ends its worker
    processes.
    """

    # What executes steps. Measurements derive a class with something else in its place.
    _make_runner: ClassVar[Callable[[EngineConfig, Group], Runner]] = Runner

    def __init__(
        self,
        model: str | Path = QUICKSTART,
        *,
        tokenizer: str | Path | None = None,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        override_generation_config: Mapping[str, Any] | None = None,
        **engine_options: Any,
    ) -> None:
        """
        Args:
            model: a folder, a Hugging Face hub id, or "quickstart".
            tokenizer: a folder or hub id; None: the model's own.
            dtype: "auto" (bfloat16 on a GPU, float32 on a CPU), "float32" (or "float") or "bfloat16".
            tensor_parallel_size: ranks the model is split over; those above 0 are child processes.
            override_generation_config: decoding defaults that come before the model's
                `generation_config.json`, under its names.
            engine_options: other fields of `EngineConfig`, such as max_num_seqs or kv_cache_gib.

        Raises ModelLoadError for a model that cannot be served, InvalidRequest for an unusable option.
        """
        for name, value in (("model", model), ("tokenizer", tokenizer or "")):
            if not isinstance(value, str | Path):
                raise InvalidRequest(
                    f"must be a folder or a hub id, got {type(value).__name__}: save it with "
                    "`save_pretrained`, and give that folder",
                    field=name,
                )
        self.folder = folder = resolve(model)
        config = EngineConfig.of(
            model=str(folder), dtype=dtype, tensor_parallel_size=tensor_parallel_size, **engine_options
        )
        limits = Limits(
            encoder_tokens=config.max_encoder_length,
            decoder_tokens=config.max_decoder_length,
            embedding_values=sys.maxsize,
            n=DEFAULT_LIMITS.n,
            segments=sys.maxsize,
            answer_values=sys.maxsize,  # no answer is sent anywhere
            timeout_s=math.inf,
            transcription_seconds=math.inf,
        )
        self._tokenizer = tokenizer
        self._request_builder = RequestBuilder.load(
            folder, str(model), limits, override_generation_config, tokenizer
        )
        self._transcription_builder = TranscriptionBuilder(self._request_builder)
        self._most_recordings = config.max_num_seqs  # transcribed at once
        self._ranks = LocalGroup(config) if tensor_parallel_size > 1 else None
        self._closing, self._closed = threading.Lock(), False
        try:
            group = self._ranks.group if self._ranks else None
            self._engine = SharedEngine(Engine(config, group, type(self)._make_runner))
        except BaseException:
            if self._ranks:
                self._ranks.close(kill=True)
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params | Sequence[Params | None] | None = None,
        *,
        source_language: _OneOrEach = None,
        target_language: _OneOrEach = None,
        task: _OneOrEach = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers all prompts in one continuous batch, in their order.

        Args:
            prompts: one prompt or a list, of any mix of kinds (see `tandem.inputs`).
            sampling_params: `SamplingParams` or `BeamSearchParams`, one for all prompts or a list with one
                for each; None: the model's own way of decoding, or the task's.
            source_language, target_language: of a translation, as the model calls them: codes of its
                tokenizer ("eng_Latn", "en_XX", "en") or of its translation tasks. source_language is also
                that of a recording ("en", "english"); without it a speech model detects the language, and
                the first generated tokens say it. One for all prompts or a list with one for each.
            task: one of those the model's config declares, such as "summarization": its text is put before a
                prompt that is text, and its decoding defaults go before the model's. A speech model's are
                "transcribe" and "translate", into English. One for all prompts or a list with one for each.
            truncate_prompt_tokens: read so many tokens of a prompt at most, rather than refuse a longer one.
                Of an encoder prompt those of `tokenizer(text, truncation=True, max_length=…)`: its beginning
                and the special tokens (of token ids the first, and the EOS); of a decoder-only model's prompt
                the last, as vLLM does. -1: as many as the model's tokenizer is made for.
            use_tqdm: show a progress bar for more than a few prompts.

        Raises InvalidRequest, naming the field and the prompt, before anything is generated.
        """
        many = _listed(prompts)
        prepared: list[PreparedRequest] = []
        for request in self._prepare(
            many, sampling_params, source_language, target_language, task, truncate_prompt_tokens
        ):
            if isinstance(request, InvalidRequest):
                where = f" (in prompt {len(prepared)} of {len(many)})" if len(many) > 1 else ""
                raise InvalidRequest(request.message + where, field=request.field)
            prepared.append(request)
        return self._answer(prepared, use_tqdm)

    def generate_each(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params | Sequence[Params | None] | None = None,
        *,
        source_language: _OneOrEach = None,
        target_language: _OneOrEach = None,
        task: _OneOrEach = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput | InvalidRequest]:
        """As `generate`, but where a prompt is refused the error stands in its answer's place, and the others
        are answered."""
        each = list(
            self._prepare(
                _listed(prompts),
                sampling_params,
                source_language,
                target_language,
                task,
                truncate_prompt_tokens,
            )
        )
        prepared = [request for request in each if isinstance(request, PreparedRequest)]
        answers = iter(self._answer(prepared, use_tqdm))
        return [request if isinstance(request, InvalidRequest) else next(answers) for request in each]

    def _prepare(
        self,
        prompts: Sequence[Prompt],
        sampling_params: Params | Sequence[Params | None] | None,
        source_language: _OneOrEach,
        target_language: _OneOrEach,
        task: _OneOrEach,
        truncate_prompt_tokens: int | None,
    ) -> Iterator[PreparedRequest | InvalidRequest]:
        """Each prompt's request, or why it is refused. Raises InvalidRequest for arguments that do not go
        with the prompts' number."""
        count = len(prompts)
        for prompt, params, options in zip(
            prompts,
            for_each(sampling_params, count, "sampling_params"),
            _each_options(count, source_language, target_language, task),
            strict=True,
        ):
            try:
                request: PreparedRequest | InvalidRequest = self._request_builder.prepare(
                    prompt, params, truncate_prompt_tokens=truncate_prompt_tokens, **options
                )
            except InvalidRequest as error:
                request = error
            yield request

    def _answer(self, prepared: Sequence[PreparedRequest], use_tqdm: bool) -> list[RequestOutput]:
        output_processors = [self._request_builder.output_processor(request) for request in prepared]
        tokens = 0
        with (
            tqdm(
                total=len(prepared),
                desc="Generating",
                unit="prompt",
                disable=not use_tqdm or len(prepared) < _PROGRESS_FROM,
            ) as progress,
            closing(self._run(prepared, output_processors)) as pieces,
        ):
            for number, piece in pieces:
                tokens += len(piece.token_ids)
                if output_processors[number].finished:
                    progress.set_postfix(tokens=tokens, refresh=False)
                    progress.update()
        return [output_processor.output() for output_processor in output_processors]

    def stream(
        self,
        prompt: Prompt,
        sampling_params: Params | None = None,
        *,
        truncate_prompt_tokens: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> Generator[TextDelta, None, None]:
        """Answers one prompt piece by piece; the arguments are those of `generate`. Closing or dropping the
        iterator cancels the request.

        Raises InvalidRequest at the first step, naming the field.
        """
        prepared = self._request_builder.prepare(
            prompt, sampling_params, truncate_prompt_tokens=truncate_prompt_tokens, **options
        )
        with closing(self._run([prepared], [self._request_builder.output_processor(prepared)])) as pieces:
            for _, piece in pieces:
                yield piece

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        targets: SingletonPrompt | Sequence[SingletonPrompt | Sequence[SingletonPrompt]],
        *,
        source_language: _OneOrEach = None,
        target_language: _OneOrEach = None,
        task: _OneOrEach = None,
    ) -> list[ScoreOutput]:
        """The log-likelihood of given targets; for a decoder-only model, as continuations of its prompt.

        Args:
            prompts: as for `generate`. Targets are scored after a prompt's decoder prompt, if it has one.
            targets: for one prompt a target or a list; for a list of prompts a list, with a target or a list
                of targets for each. Text is tokenized as a label is, token ids are taken as they are.
            source_language, target_language, task: as for `generate`. Targets that are text need the
                target_language of a multilingual model.

        Targets of one prompt that run together share its encoder pass. Raises InvalidRequest, naming the
        field, before anything is scored.
        """
        single = isinstance(prompts, str | dict)
        many = _listed(prompts)
        each = [targets] if single else list(targets)
        if len(each) != len(many):
            raise InvalidRequest(f"got {len(each)} for {len(many)} prompts", field="targets")
        prepared = [
            self._request_builder.prepare_score(
                prompt,
                cast(list[SingletonPrompt], [own] if isinstance(own, str | dict) else list(own)),
                **options,
            )
            for prompt, own, options in zip(
                many, each, _each_options(len(many), source_language, target_language, task), strict=True
            )
        ]
        sequences = [sequence for request in prepared for sequence in request.sequences]
        with closing(self._engine.deltas(sequences)) as deltas:
            ends = {delta.request_id: delta for delta in deltas}
        return [score_output(request, ends) for request in prepared]

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling: Pooling = "mean",
        *,
        source_language: _OneOrEach = None,
        target_language: _OneOrEach = None,
        task: _OneOrEach = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[EmbeddingOutput]:
        """The encoder's hidden states of prompts, in their order: transformers' `last_hidden_state`.

        Args:
            prompts: what the encoder reads, one prompt or a list, as for `generate`.
            pooling: "mean" of all positions, special tokens included; "first", the first position's, which is
                BERT's [CLS]; "none", all of them.
            source_language, target_language, task, truncate_prompt_tokens: as for `generate`.

        Raises InvalidRequest, naming the field, before anything is encoded, and for a decoder-only model.
        """
        many = cast(list[Prompt], [prompts] if isinstance(prompts, str | dict) else list(prompts))
        prepared = [
            self._request_builder.prepare_embed(
                [prompt], pooling, truncate_prompt_tokens=truncate_prompt_tokens, **options
            )
            for prompt, options in zip(
                many, _each_options(len(many), source_language, target_language, task), strict=True
            )
        ]
        found: dict[int, EmbeddingOutput] = {}
        lengths = [one.encoder_tokens for one in prepared]
        for batch in _batches(lengths, self._engine.engine.config.max_encoder_tokens):
            states = self._engine.encode([prepared[number].requests[0].encoder for number in batch])
            for number, own in zip(batch, states.split([lengths[number] for number in batch]), strict=True):
                found[number] = embedding_output(prepared[number].request_id, own, pooling)
        return [found[number] for number in range(len(prepared))]

    @property
    def info(self) -> ModelInfo:
        """What is known of the model."""
        return self._request_builder.info

    @property
    def tasks(self) -> Tasks:
        """What requests may name as task and languages."""
        return self._request_builder.tasks

    @property
    def max_encoder_tokens(self) -> int:
        """Tokens of the longest prompt."""
        return self._request_builder.max_encoder_tokens

    def stats(self) -> EngineStats:
        """What the engine holds and has done so far."""
        return self._engine.engine.stats()

    def segment(self, text: str, split: Split = "sentence", **options: Unpack[TaskOptions]) -> Document:
        """A text as the segments that a sentence model translates, each a prompt of its own, and as what puts
        their translations together again. The options are those of `generate`."""
        return self._request_builder.segment(text, split, **options)

    def tokenize(self, text: str) -> list[int]:
        """The encoder's token ids for a text, special tokens included."""
        return self._request_builder.tokenize(text)

    def detokenize(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids that the decoder generates, as the tokenizer's `decode` gives it."""
        return self._request_builder.detokenize(token_ids, skip_special_tokens=skip_special_tokens)

    def get_tokenizer(self, *, target: bool = False) -> PreTrainedTokenizerBase:
        """transformers' tokenizer of the prompts, or of the answers (`target`), which is the same for most
        models. It is the caller's own: the engine's is not shared, so that changing it does no harm."""
        source, own = read_tokenizers(self.folder, self._tokenizer)
        return own if target and own is not None else source

    def close(self) -> None:
        """Ends the worker processes. Calls under way fail; closing twice does no harm."""
        with self._closing:
            if self._closed:
                return
            self._closed, sound = True, False
            try:
                sound = self._engine.close(InvalidRequest("this LLM is closed"))
            finally:
                if self._ranks:
                    self._ranks.close(kill=not sound)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self, prepared: Sequence[PreparedRequest], output_processors: Sequence[OutputProcessor]
    ) -> Generator[tuple[int, TextDelta]]:
        """Yields what each of these requests grew by, with its number; otherwise as `SharedEngine.deltas`."""
        where = {
            sequence.request_id: (number, index)
            for number, request in enumerate(prepared)
            for index, sequence in enumerate(request.sequences)
        }
        sequences = [sequence for request in prepared for sequence in request.sequences]
        with closing(self._engine.deltas(sequences)) as deltas:
            for delta in deltas:
                number, index = where[delta.request_id]
                pieces = output_processors[number].push(delta)
                if not delta.last and output_processors[number].stopped(index):
                    self._engine.cancel(delta.request_id)
                for piece in pieces:
                    yield number, piece


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    return cast(list[Prompt], [prompts] if isinstance(prompts, str | dict) else list(prompts))


def _each_options(count: int, source: _OneOrEach, target: _OneOrEach, task: _OneOrEach) -> list[TaskOptions]:
    def each(values: _OneOrEach, field: str) -> list[str | None]:
        if values is None or isinstance(values, str):
            return [values] * count
        if len(values) != count:
            raise InvalidRequest(f"got {len(values)} for {count} prompts", field=field)
        return list(values)

    columns = each(source, "source_language"), each(target, "target_language"), each(task, "task")
    return [
        TaskOptions(source_language=one, target_language=other, task=what)
        for one, other, what in zip(*columns, strict=True)
    ]


def _batches(lengths: Sequence[int], budget_tokens: int) -> Iterator[list[int]]:
    """The numbers of all inputs of these lengths in batches, neighbours in length together. An input beyond
    the budget goes alone."""
    batch: list[int] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and tokens + lengths[number] > budget_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(number)
        tokens += lengths[number]
    if batch:
        yield batch
