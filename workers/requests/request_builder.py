"""The one validator beneath every protocol: a prompt and its parameters → engine requests.

`LLM` and every ingress use this same class, which is free of Ray, gRPC and FastAPI. Its methods may be called
from several threads at once, and tokenize in the caller's thread.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from tandem.errors import InvalidRequest, ModelNotFound
from tandem.inputs import (
    Prompt,
    PromptSide,
    RequestOptions,
    SingletonPrompt,
)
from tandem.limits import DEFAULT_LIMITS, Limits
from tandem.params import BeamSearchParams, Params, SamplingParams
from tandem.workers.request import Decoding, EngineRequest
from tandem.workers.requests.decoding import check_counts, decoding_of, scoring_of
from tandem.workers.requests.detokenizer import Vocabulary
from tandem.workers.requests.media import MediaProcessor, read_processor
from tandem.workers.requests.model_info import ModelInfo
from tandem.workers.requests.options import CheckedOptions, check_options
from tandem.workers.requests.output_processor import OutputProcessor, PreparedRequest
from tandem.workers.requests.prompt_reader import ParsedPrompt, PromptReader
from tandem.workers.requests.tasks import ResolvedTask, Tasks
from tandem.workers.requests.tokenizer import DECODER_TOKENIZER, TextTokenizer, check_text, read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "ModelInfo",
    "OutputProcessor",
    "PreparedRequest",
    "RequestBuilder",
    "Tasks",
    "check_text",
    "sample_seed",
]


class RequestBuilder:
    """Checks, tokenizes and completes requests for one model."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits = DEFAULT_LIMITS,
        target: PreTrainedTokenizerBase | None = None,
        processor: MediaProcessor | None = None,
    ) -> None:
        """`target` is the decoder's tokenizer, where that is another; `processor` is for a model that reads
        media."""
        self.info, self.limits, self.processor = info, limits, processor
        self.vocabulary = Vocabulary(tokenizer if target is None else target)
        self.tasks = Tasks.of(info.tasks, info.defaults, tokenizer, info.speech)
        self._tokenizer = TextTokenizer(tokenizer, target)
        languages = bool(self.tasks.languages)
        self._reader = PromptReader(info, self._tokenizer, limits, processor, languages=languages)
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
    ) -> RequestBuilder:
        """Reads a model's folder, all but its weights. Raises ModelLoadError.

        overrides: decoding defaults that come before the model's own, under transformers' names.
        """
        folder = Path(folder)
        info = ModelInfo.read(folder, served_name, overrides)
        own = folder / DECODER_TOKENIZER
        target = read_tokenizer(own) if own.is_dir() else None
        return cls(info, read_tokenizer(folder), limits, target, read_processor(folder, info.front))

    def prepare(
        self,
        prompt: Prompt,
        params: Params | None = None,
        **options: Unpack[RequestOptions],
    ) -> PreparedRequest:
        """Checks everything there is to check about a request, and fills in every default. Without params
        the model's own way of decoding holds, or the task's.

        The options may name one of the model's `task_specific_params`, or the languages of a translation:
        codes of its tokenizer, or those that name a task. What the model wants to read for them is put before
        a text; token ids are taken as they are.

        Raises InvalidRequest, naming the field and the limit, and ModelNotFound.
        """
        self.check_model(options.get("model"))
        checked = check_options(self.limits, self.tasks, **options)
        task = checked.task
        if params is None:
            params = BeamSearchParams() if task.defaults.beams else SamplingParams()
        check_counts(params, self.limits)

        given = self._reader.read(prompt, task)
        decoding = self._decoding(params, task, given)
        self._check_answer(params.outputs, decoding)

        samples = params.n if isinstance(params, SamplingParams) else 1
        seed = secrets.randbits(63) if params.seed is None else params.seed
        # The samples' prompt is the same: the first sample has its log-probabilities.
        others = replace(decoding, prompt_logprobs=None)
        sequences = [
            (replace(others if index else decoding, seed=sample_seed(seed, index)), ())
            for index in range(samples)
        ]
        return _prepared(
            checked,
            given,
            sequences,
            outputs=params.outputs,
            stop=params.stop if isinstance(params, SamplingParams) else (),
            skip_special_tokens=params.skip_special_tokens,
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
        given = self._reader.read(prompt, task)
        if given.opening:
            raise InvalidRequest("is needed: targets follow it", field="source_language")
        ids = [
            self._reader.target_ids(target, f"targets.{number}", given, task)
            for number, target in enumerate(targets)
        ]
        sequences = [(scoring_of(len(target)), tuple(target)) for target in ids]
        return _prepared(checked, given, sequences, outputs=len(ids))

    def tokenize(self, text: str, *, field: str = "text") -> list[int]:
        """The ids a prompt's text becomes, special tokens included. Raises InvalidRequest."""
        return self._reader.prompt_ids(PromptSide(text, None), field, field, self.tasks.resolve())

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

    def _decoding(self, params: Params, task: ResolvedTask, given: ParsedPrompt) -> Decoding:
        def encode(text: str, name: str) -> list[int]:
            return self.decoder_ids(text, name, self.limits.bad_word_tokens)

        prefix, opening = given.prefix, len(given.opening)
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
                target_ids=target,
                priority=checked.priority,
                timeout_s=checked.timeout_s,
            )
            for index, (decoding, target) in enumerate(sequences)
        ],
        outputs=outputs,
        stop=stop,
        skip_special_tokens=skip_special_tokens,
    )


def sample_seed(seed: int, index: int) -> int:
    """The seed of a request's sample. The first sample has the request's own, so that asking for more samples
    does not change it; the others have BLAKE2b-64 of both numbers, little-endian, without its top bit."""
    if index == 0:
        return seed
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + index.to_bytes(4, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1
