"""A model in this process: what it can be asked."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, Unpack, cast

from tandem.errors import BadPrompt, InvalidRequest
from tandem.inputs import Prompt, SingletonPrompt, TaskOptions, listed
from tandem.limits import DEFAULT_LIMITS, Limits
from tandem.offline.prompts import OneOrEach, each_options, prepare_all, prepare_each
from tandem.offline.running import answer_all, encode_all, text_deltas
from tandem.offline.transcribing import Transcribing
from tandem.outputs import EmbeddingOutput, RequestOutput, ScoreOutput, TextDelta
from tandem.params import Params, Pooling
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.engine import Engine
from tandem.workers.execution.runner import Runner
from tandem.workers.local_group import LocalGroup
from tandem.workers.models.families import spec_of
from tandem.workers.models.model_folder import QUICKSTART, read_config, resolve
from tandem.workers.request import EngineStats
from tandem.workers.requests.answers.embedding import embedding_output
from tandem.workers.requests.answers.scoring import score_output
from tandem.workers.requests.prompts.tokenizer import read_tokenizers
from tandem.workers.requests.request_builder import (
    ModelInfo,
    PreparedRequest,
    RequestBuilder,
    Tasks,
    naming_prompt,
)
from tandem.workers.requests.segmentation.segments import Document, Split
from tandem.workers.shared_engine import SharedEngine
from tandem.workers.transcription.builder import TranscriptionBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        if "max_encoder_length" not in engine_options:  # an item of media fits in any case
            most = max(config.max_encoder_length, spec_of(read_config(folder)).item_positions)
            config = replace(config, max_encoder_length=most)
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
        source_language: OneOrEach = None,
        target_language: OneOrEach = None,
        task: OneOrEach = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers all prompts in one continuous batch, in their order.

        Args:
            prompts: one prompt or a list, of any mix of kinds (see `tandem.inputs`).
            sampling_params: `SamplingParams` or `BeamSearchParams`, one for all prompts or a list with one
                for each; None: the model's own way of decoding, or the task's.
            source_language, target_language: a translation's, as the model calls them: codes of its
                tokenizer ("eng_Latn", "en_XX", "en") or of its translation tasks. source_language is also
                that of a recording ("en", "english"); without it a speech model detects the language, and
                the first generated tokens say it. One for all prompts or a list with one for each.
            task: one of those the model's config declares, such as "summarization": its text is put before a
                prompt that is text, and its decoding defaults go before the model's. A speech model's are
                "transcribe" and "translate", into English. One for all prompts or a list with one for each.
            truncate_prompt_tokens: read so many tokens of a prompt at most, rather than refuse a longer one.
                An encoder prompt keeps what `tokenizer(text, truncation=True, max_length=…)` leaves: its
                beginning and the special tokens (the first of token ids, and the EOS). A decoder-only model's
                prompt keeps its end, as in vLLM. -1: as many as the model's tokenizer is made for.
            use_tqdm: show a progress bar for more than a few prompts.

        Raises InvalidRequest, naming the field and the prompt, before anything is generated, and for media
        that cannot be decoded.
        """
        many = listed(prompts)
        options = each_options(len(many), source_language, target_language, task)
        prepared = prepare_all(self._request_builder, many, sampling_params, options, truncate_prompt_tokens)
        return answer_all(self._engine, self._request_builder, prepared, use_tqdm=use_tqdm)

    def generate_each(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params | Sequence[Params | None] | None = None,
        *,
        source_language: OneOrEach = None,
        target_language: OneOrEach = None,
        task: OneOrEach = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput | BadPrompt]:
        """As `generate`, but where a prompt is refused the error stands in its answer's place, and the others
        are answered."""
        many = listed(prompts)
        options = each_options(len(many), source_language, target_language, task)
        each = list(
            prepare_each(self._request_builder, many, sampling_params, options, truncate_prompt_tokens)
        )
        prepared = [request for request in each if isinstance(request, PreparedRequest)]
        refused: dict[int, BadPrompt] = {}
        outputs = answer_all(
            self._engine, self._request_builder, prepared, use_tqdm=use_tqdm, refused=refused
        )
        answers = iter([refused.get(number) or output for number, output in enumerate(outputs)])
        return [next(answers) if isinstance(request, PreparedRequest) else request for request in each]

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
        output_processor = self._request_builder.output_processor(prepared)
        with closing(text_deltas(self._engine, [prepared], [output_processor])) as pieces:
            for _, piece in pieces:
                yield piece

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        targets: SingletonPrompt | Sequence[SingletonPrompt | Sequence[SingletonPrompt]],
        *,
        source_language: OneOrEach = None,
        target_language: OneOrEach = None,
        task: OneOrEach = None,
    ) -> list[ScoreOutput]:
        """The log-likelihood of given targets; for a decoder-only model, as continuations of its prompt.

        Args:
            prompts: as for `generate`. Targets are scored after a prompt's decoder prompt, if it has one.
            targets: for one prompt a target or a list; for a list of prompts a list, with a target or a list
                of targets for each. Text is tokenized as a label is, token ids are taken as they are.
            source_language, target_language, task: as for `generate`. Targets that are text need the
                target_language of a multilingual model.

        Targets of one prompt that run together share its encoder pass. Raises InvalidRequest, naming the
        field and the prompt, before anything is scored.
        """
        many = listed(prompts)
        own = [targets] if isinstance(prompts, str | dict) else list(targets)
        each = cast(list[SingletonPrompt | Sequence[SingletonPrompt]], own)
        if len(each) != len(many):
            raise InvalidRequest(f"got {len(each)} for {len(many)} prompts", field="targets")
        options = each_options(len(many), source_language, target_language, task)
        prepared = []
        for number, (prompt, one, asked) in enumerate(zip(many, each, options, strict=True)):
            with naming_prompt(number, len(many)):
                prepared.append(self._request_builder.prepare_score(prompt, listed(one), **asked))
        sequences = [sequence for request in prepared for sequence in request.sequences]
        with closing(self._engine.deltas(sequences)) as deltas:
            ends = {delta.request_id: delta for delta in deltas}
        outputs = []
        for number, request in enumerate(prepared):
            with naming_prompt(number, len(many)):
                outputs.append(score_output(request, ends))
        return outputs

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling: Pooling = "mean",
        *,
        source_language: OneOrEach = None,
        target_language: OneOrEach = None,
        task: OneOrEach = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[EmbeddingOutput]:
        """The encoder's hidden states of prompts, in their order: transformers' `last_hidden_state`.

        Args:
            prompts: what the encoder reads, one prompt or a list, as for `generate`.
            pooling: "mean" of all positions, special tokens included; "first", the first position's, which is
                BERT's [CLS]; "none", all of them.
            source_language, target_language, task, truncate_prompt_tokens: as for `generate`.

        Raises InvalidRequest, naming the field and the prompt, before anything is encoded, and for a
        decoder-only model.
        """
        many = listed(prompts)
        options = each_options(len(many), source_language, target_language, task)
        prepared = []
        for number, (prompt, asked) in enumerate(zip(many, options, strict=True)):
            with naming_prompt(number, len(many)):
                one = self._request_builder.prepare_embed(
                    [prompt], pooling, truncate_prompt_tokens=truncate_prompt_tokens, **asked
                )
                prepared.append(one)
        inputs = [one.requests[0].encoder for one in prepared]
        encoded = encode_all(self._engine, inputs, [one.encoder_tokens for one in prepared])
        found = {
            number: embedding_output(prepared[number].request_id, states, pooling)
            for number, states in encoded
        }
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
