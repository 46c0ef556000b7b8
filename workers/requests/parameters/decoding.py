"""A request's parameters and the model's own defaults → `Decoding`, in which nothing is left open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from tandem.errors import InvalidRequest
from tandem.limits import Limits
from tandem.params import BeamSearchParams, DecodingParams, Params, SamplingParams
from tandem.workers.request import BeamSearch, Decoding
from tandem.workers.requests.model_info import ModelInfo
from tandem.workers.requests.parameters.defaults import GenerationDefaults

# Where neither request nor model says how much to generate.
DEFAULT_MAX_TOKENS: Final = 256
DEFAULT_NUM_BEAMS: Final = 4

T = TypeVar("T")
Encode = Callable[[str, str], list[int]]  # a text and its field's name → ids, no special tokens


def scoring_of(tokens: int) -> Decoding:
    """How a target of this many tokens is scored: under the model's own distribution, to its end."""
    return Decoding(
        max_tokens=tokens, min_tokens=0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
        repetition_penalty=1.0, seed=0, stop_ids=frozenset(), eos_ids=frozenset(), logprobs=0,
    )  # fmt: skip


def completed(params: Params | None, own: GenerationDefaults) -> Params:
    """What a request asks for, in the model's own way of decoding where it does not choose another.

    Where that way is beam search, `SamplingParams` leave it by a temperature above 0, which draws samples, or
    by `num_beams=1`; all else that they say holds for the beams. Raises InvalidRequest for what does not go
    with beams.
    """
    if params is None:
        return BeamSearchParams() if own.beams else SamplingParams()
    if isinstance(params, BeamSearchParams) or not own.beams or params.num_beams == 1 or params.temperature:
        return params
    return params.with_beams()


def decoding_of(
    params: Params,
    own: GenerationDefaults,
    prefix: Sequence[int],
    room: int,
    info: ModelInfo,
    encode: Encode,
) -> Decoding:
    """What `params` ask of a decoder that starts from `prefix` and has room for `room` tokens more.

    `own` are the defaults of the model, or of the request's task.

    The seed is left 0: each sample has its own. Raises InvalidRequest, naming the field.
    """
    max_tokens = _max_tokens(params, len(prefix), room, own)
    for field in ("stop_token_ids", "suppress_tokens", "begin_suppress_tokens", "logit_bias"):
        check_ids(getattr(params, field) or (), field, info.vocab_size)
    for field in ("forced_bos_token_id", "forced_eos_token_id"):
        if (forced := getattr(params, field)) is not None:
            check_ids([forced], field, info.vocab_size)
    stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else info.eos_ids)
    forced_eos = params.forced_eos_token_id
    return Decoding(
        max_tokens=max_tokens,
        min_tokens=_min_tokens(params, len(prefix), max_tokens, own),
        temperature=_given(params.temperature, own.temperature),
        top_k=max(0, _given(params.top_k, own.top_k)),
        top_p=_given(params.top_p, own.top_p),
        min_p=_given(params.min_p, own.min_p),
        typical_p=_given(params.typical_p, own.typical_p),
        repetition_penalty=_given(params.repetition_penalty, own.repetition_penalty),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        no_repeat_ngram_size=_given(params.no_repeat_ngram_size, own.no_repeat_ngram_size),
        encoder_no_repeat_ngram_size=_given(
            params.encoder_no_repeat_ngram_size, own.encoder_no_repeat_ngram_size
        ),
        bad_words=_bad_words(params, own, stop_ids, info.vocab_size, encode),
        logit_bias=tuple(params.logit_bias.items()),
        forced_bos_id=_given(params.forced_bos_token_id, own.forced_bos_id),
        forced_eos_ids=own.forced_eos_ids if forced_eos is None else (forced_eos,),
        suppress_ids=tuple(_given(params.suppress_tokens, own.suppress_ids)),
        begin_suppress_ids=tuple(_given(params.begin_suppress_tokens, own.begin_suppress_ids)),
        seed=0,
        stop_ids=stop_ids,
        eos_ids=info.eos_ids,
        logprobs=params.logprobs if isinstance(params, SamplingParams) else None,
        prompt_logprobs=params.prompt_logprobs if isinstance(params, SamplingParams) else None,
        beams=_beams(params, own) if isinstance(params, BeamSearchParams) else None,
    )


def _beams(params: BeamSearchParams, own: GenerationDefaults) -> BeamSearch | None:
    """None: one beam, which is no search in transformers, either."""
    default = own.num_beams if own.num_beams > 1 else DEFAULT_NUM_BEAMS
    num_beams = _given(params.num_beams, default)
    if params.num_return_sequences > num_beams:
        raise InvalidRequest(
            f"must not exceed num_beams, here {num_beams}, got {params.num_return_sequences}",
            field="num_return_sequences",
        )
    if num_beams == 1:
        return None
    return BeamSearch(
        num_beams=num_beams,
        num_return_sequences=params.num_return_sequences,
        length_penalty=_given(params.length_penalty, own.length_penalty),
        early_stopping=_given(params.early_stopping, own.early_stopping),
        renormalize=own.renormalize,
    )


def default_max_tokens(own: GenerationDefaults, prefix: int, room: int) -> int:
    """Most tokens of an answer, where the request does not say it, after `prefix` that the decoder starts
    from and with room for `room`. transformers' `max_length` counts the prefix, `max_new_tokens` does not."""
    default = own.max_new_tokens or (own.max_length and own.max_length - prefix)
    return max(1, min(default or DEFAULT_MAX_TOKENS, room))


def _max_tokens(params: DecodingParams, prefix: int, room: int, own: GenerationDefaults) -> int:
    if params.max_tokens is None:
        return default_max_tokens(own, prefix, room)
    if params.max_tokens > room:
        raise InvalidRequest(
            f"{params.max_tokens} tokens after the {prefix} the decoder starts from exceed the limit of "
            f"{prefix + room}",
            field="max_tokens",
        )
    return params.max_tokens


def _min_tokens(params: DecodingParams, prefix: int, max_tokens: int, own: GenerationDefaults) -> int:
    """transformers' `min_length` counts what the decoder starts from, `min_new_tokens` does not."""
    if "min_tokens" not in params.model_fields_set:
        default = own.min_length - prefix if own.min_new_tokens is None else own.min_new_tokens
        return max(0, min(default, max_tokens))
    if params.min_tokens > max_tokens:
        raise InvalidRequest(
            f"must not exceed max_tokens, here {max_tokens}, got {params.min_tokens}", field="min_tokens"
        )
    return params.min_tokens


def _bad_words(
    params: DecodingParams,
    own: GenerationDefaults,
    stop_ids: frozenset[int],
    vocab_size: int,
    encode: Encode,
) -> tuple[tuple[int, ...], ...]:
    words = [tuple(word) for word in _given(params.bad_words_ids, own.bad_words_ids)]
    for word in words:
        check_ids(word, "bad_words_ids", vocab_size)
    for text in params.bad_words:
        # A word of its own and the end of another, which many tokenizers tell apart.
        words += [tuple(encode(text, "bad_words")), tuple(encode(f" {text}", "bad_words"))]
    # EOS alone cannot be forbidden, as in transformers.
    return tuple(
        dict.fromkeys(word for word in words if word and not (len(word) == 1 and word[0] in stop_ids))
    )


def check_ids(ids: Iterable[int], name: str, vocab_size: int) -> None:
    """Raises InvalidRequest for an id that the vocabulary does not have."""
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"id {token_id} at {index} is not in the vocabulary, 0 to {vocab_size - 1}", field=name
            )


def check_counts(params: DecodingParams, limits: Limits) -> None:
    """Applies the server's limits, which may be lower than the parameters' own. Raises InvalidRequest."""
    counts = [
        ("stop_token_ids", len(params.stop_token_ids), limits.stop_token_ids),
        ("bad_words", len(params.bad_words), limits.bad_words),
        ("bad_words_ids", len(params.bad_words_ids or ()), limits.bad_words),
        ("logit_bias", len(params.logit_bias), limits.logit_bias),
        ("suppress_tokens", len(params.suppress_tokens or ()), limits.suppress_tokens),
        ("begin_suppress_tokens", len(params.begin_suppress_tokens or ()), limits.suppress_tokens),
    ]
    if isinstance(params, BeamSearchParams):
        counts += [
            ("num_beams", params.num_beams or 1, limits.num_beams),
            ("num_return_sequences", params.num_return_sequences, limits.num_beams),
        ]
    if isinstance(params, SamplingParams):
        counts += [
            ("n", params.n, limits.n),
            ("logprobs", params.logprobs or 0, limits.logprobs),
            ("prompt_logprobs", params.prompt_logprobs or 0, limits.logprobs),
            ("stop", len(params.stop), limits.stop_strings),
        ]
    for name, got, limit in counts:
        if got > limit:
            raise InvalidRequest(f"at most {limit}, got {got}", field=name)


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
