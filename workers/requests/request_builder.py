"""The one validator beneath every protocol: a prompt and its parameters → engine requests.

`LLM` and every ingress use this same class, which is free of Ray, gRPC and FastAPI. Its methods may be called
from several threads at once, and tokenize in the caller's thread.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from tandem.errors import InvalidRequest, ModelNotFound, RequestTooLarge
from tandem.inputs import (
    Media,
    Prompt,
    PromptSide,
    RequestOptions,
    SingletonPrompt,
    decoder_side,
    split_prompt,
)
from tandem.limits import DEFAULT_LIMITS, Limits
from tandem.params import BeamSearchParams, Params, SamplingParams
from tandem.workers.request import Decoding, EncoderInput, EngineRequest
from tandem.workers.requests.decoding import check_counts, check_ids, decoding_of, scoring_of
from tandem.workers.requests.detokenizer import Vocabulary
from tandem.workers.requests.model_info import ModelInfo
from tandem.workers.requests.options import CheckedOptions, check_options
from tandem.workers.requests.output_processor import OutputProcessor, PreparedRequest
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
    ) -> None:
        """`target` is the decoder's tokenizer, where that is another."""
        self.info, self.limits = info, limits
        self.vocabulary = Vocabulary(tokenizer if target is None else target)
        self.tasks = Tasks.of(info.tasks, info.defaults, tokenizer)
        self.max_encoder_tokens = min(limits.encoder_tokens, info.encoder_positions or limits.encoder_tokens)
        self.max_decoder_tokens = min(limits.decoder_tokens, info.decoder_positions or limits.decoder_tokens)
        self._tokenizer = TextTokenizer(tokenizer, target)

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
        return cls(info, read_tokenizer(folder), limits, read_tokenizer(own) if own.is_dir() else None)

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

        given = self._parse(prompt, task)
        decoding = self._decoding(params, task, given.prefix)
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
        given = self._parse(prompt, task)
        ids = [
            self._target_ids(target, f"targets.{number}", given, task)
            for number, target in enumerate(targets)
        ]
        sequences = [(scoring_of(len(target)), tuple(target)) for target in ids]
        return _prepared(checked, given, sequences, outputs=len(ids))

    def tokenize(self, text: str, *, field: str = "text") -> list[int]:
        """The ids a prompt's text becomes, special tokens included. Raises InvalidRequest."""
        return self._prompt_ids(PromptSide(text, None), field, field, self.tasks.resolve())

    def output_processor(self, prepared: PreparedRequest) -> OutputProcessor:
        """What turns this request's deltas into its answer."""
        return OutputProcessor(self.vocabulary, prepared)

    def check_model(self, model: str | None) -> None:
        """Raises ModelNotFound unless this is the model served; None and "" mean the only one."""
        if model and model != self.info.name:
            raise ModelNotFound(f"no model {model[:80]!r}; this server has {self.info.name!r}", field="model")

    # -- the parts of a request

    def _parse(self, prompt: Prompt, task: ResolvedTask) -> ParsedPrompt:
        encoder_side, side, explicit = split_prompt(prompt)
        before = "encoder_prompt." if explicit else ""
        names = ("encoder_prompt" if explicit else "prompt"), f"{before}prompt_token_ids"
        shown = _shown(encoder_side, names[0]), side and _shown(side, "decoder_prompt")
        media = encoder_side.media
        self._check_media(media, f"{before}multi_modal_data")
        encoder_ids = self._prompt_ids(encoder_side, *names, task)
        if self.info.encoder_vocab_size is not None:
            prefix = self._prefix(side, task)
            context = prefix[1:]
        elif explicit:
            raise InvalidRequest(f"{self.info.name!r} is decoder-only: give a single prompt", field=names[0])
        else:
            context = prefix = encoder_ids
            encoder_ids, shown = [], (None, shown[0])
        encoder = EncoderInput(self._encoder_key(encoder_ids, media), tuple(encoder_ids), media=media)
        return ParsedPrompt(encoder, encoder_ids, prefix, context, *shown)

    def _check_media(self, media: Sequence[Media], name: str) -> None:
        """Checks what needs no decoding: the media's modalities, number and bytes."""
        takes, limits = self.info.modalities, self.limits
        for modality in dict.fromkeys(one.modality for one in media):
            if modality not in takes:
                known = " and ".join(["text", *sorted(takes)])
                only = known if takes else f"{known} only"
                raise InvalidRequest(f"{self.info.name!r} takes {only}", field=f"{name}.{modality}")
        if not media:
            return
        field = f"{name}.{media[-1].modality}"
        if len(media) > limits.media_items:
            raise InvalidRequest(f"at most {limits.media_items} items, got {len(media)}", field=field)
        if not all(one.data for one in media):
            raise InvalidRequest("has no bytes", field=field)
        if (size := sum(len(one.data) for one in media)) > limits.media_bytes:
            raise RequestTooLarge(f"has {size} bytes, the limit is {limits.media_bytes}", field=field)

    def _prompt_ids(self, side: PromptSide, name: str, ids_name: str, task: ResolvedTask) -> list[int]:
        """The encoder prompt's ids, or a decoder-only model's."""
        size, limit, source = self.info.encoder_vocab_size, self.max_encoder_tokens, task.source
        if size is None:
            size, limit = self.info.vocab_size, self.max_decoder_tokens - 1  # one at least is to be generated
        ids = side.token_ids
        if ids is None:
            text = side.text or ""
            if not text and side.media:
                return []
            if not text:
                raise InvalidRequest("must not be empty", field=name)
            ids = self._tokenizer.encode(task.prefix + text, name, limit, special=source is None)
            ids = [*source.prefix, *ids, *source.suffix] if source else ids
        elif source:
            raise InvalidRequest("is for a prompt that is text", field="source_language")
        else:
            name = ids_name
        if not ids:
            raise InvalidRequest("has no tokens", field=name)
        if len(ids) > limit:
            raise InvalidRequest(f"has {len(ids)} tokens, the limit is {limit}", field=name)
        check_ids(ids, name, size)
        return list(ids)

    def _prefix(self, side: PromptSide | None, task: ResolvedTask) -> list[int]:
        """What the decoder starts from: the start token, unless it is there, and the decoder prompt."""
        text, ids = (None, None) if side is None else (side.text, side.token_ids)
        name, limit = "decoder_prompt", self.max_decoder_tokens - 1  # one at least is to be generated
        start, target = self.info.decoder_start_id, task.target
        assert start is not None
        if target is not None and start not in self.info.eos_ids:
            # mBART and PLBart start from the target language; the later families from EOS, and then comes the
            # language: forced upon the first token, or before a decoder prompt.
            start = target.token_id
        if ids is None:
            ids = self._tokenizer.encode(text, name, limit, special=False, target=True) if text else []
            if target is not None and ids and start != target.token_id:
                ids = [target.token_id, *ids]
        else:
            name = "decoder_prompt.prompt_token_ids"
            if not ids:
                raise InvalidRequest("has no tokens; leave it out for none", field=name)
            if target is not None:
                raise InvalidRequest("is for a decoder prompt that is text", field="target_language")
        prefix = list(ids) if ids[:1] == [start] else [start, *ids]
        if len(prefix) > limit:
            raise InvalidRequest(
                f"has {len(prefix)} tokens with the start token, the limit is {limit}", field=name
            )
        check_ids(ids, name, self.info.vocab_size)
        return prefix

    def _target_ids(
        self, target: SingletonPrompt, name: str, given: ParsedPrompt, task: ResolvedTask
    ) -> list[int]:
        start = len(given.prefix)
        limit = self.max_decoder_tokens - start
        text, ids, _ = decoder_side(target, name)
        if ids is not None:
            name += ".prompt_token_ids"
        elif not text:
            raise InvalidRequest("must not be empty", field=name)
        elif task.target is not None:
            ids = self._tokenizer.encode(text, name, limit, special=False, target=True)
            # A decoder prompt has the language already.
            before = () if given.context else task.target.label_prefix
            ids = [*before, *ids, *task.target.label_suffix]
        elif self.tasks.languages:
            raise InvalidRequest("is needed for a target that is text", field="target_language")
        else:
            special = self.info.encoder_vocab_size is not None
            ids = self._tokenizer.encode(text, name, limit, special=special, target=True)
        if not ids:
            raise InvalidRequest("has no tokens", field=name)
        if len(ids) > limit:
            raise InvalidRequest(
                f"has {len(ids)} tokens, after the {start} the decoder starts from the limit is {limit}",
                field=name,
            )
        check_ids(ids, name, self.info.vocab_size)
        return ids

    def _decoding(self, params: Params, task: ResolvedTask, prefix: list[int]) -> Decoding:
        def encode(text: str, name: str) -> list[int]:
            limit = self.limits.bad_word_tokens
            ids = self._tokenizer.encode(text, name, limit, special=False, target=True)
            if len(ids) > limit:
                raise InvalidRequest(f"{text!r} has {len(ids)} tokens, the limit is {limit}", field=name)
            return ids

        room = self.max_decoder_tokens - len(prefix)
        decoding = decoding_of(params, task.defaults, prefix, room, self.info, encode)
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

    def _encoder_key(self, ids: list[int], media: Sequence[Media]) -> str:
        digest = hashlib.blake2b(self.info.revision.encode(), digest_size=16)
        digest.update(b"\0" + array("I", ids).tobytes())
        for modality, data in media:
            digest.update(f"\0{modality}\0{len(data)}\0".encode())
            digest.update(data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt, read."""

    encoder: EncoderInput
    encoder_ids: list[int]
    prefix: list[int]  # what the decoder starts from, start token included
    context: list[int]  # the decoder prompt alone
    encoder_text: str | None  # as given, where it was text
    decoder_text: str | None


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


def _shown(side: PromptSide, name: str) -> str | None:
    """A prompt's text, for the answer to repeat."""
    if side.text is not None:
        check_text(side.text, name)
    return side.text
