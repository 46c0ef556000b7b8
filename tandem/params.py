"""How to decode: what a caller asks for (`SamplingParams` or `BeamSearchParams`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tandem.errors import InvalidRequest
from tandem.limits import DEFAULT_LIMITS as CAP

_INT32_MAX = 2**31 - 1

EarlyStopping = bool | Literal["never"]
# What an encoder's hidden states become: their mean, the first position's, or each one as it is.
Pooling = Literal["mean", "first", "none"]
TokenId = Annotated[int, Field(ge=0, le=_INT32_MAX)]
TokenSequence = Annotated[list[TokenId], Field(min_length=1, max_length=CAP.bad_word_tokens)]
LengthPenalty = Annotated[
    float | None,
    Field(
        ge=-100,
        le=100,
        description="Of beam search: a score is divided by length ** this; above 0 favours long answers.",
    ),
]
WhenToStop = Annotated[
    EarlyStopping | None,
    Field(
        description="Of beam search: true stops at num_beams finished ones; false when better ones are "
        'unlikely; "never" when there can be none.'
    ),
]


class DecodingParams(BaseModel):
    """The parameters of every way of decoding: lengths, and what is done to scores before tokens are chosen.

    Each processor is transformers' of the same name, and they come in its order.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    max_tokens: int | None = Field(None, ge=1, le=CAP.decoder_tokens, description="Most tokens to generate.")
    min_tokens: int = Field(
        0, ge=0, le=CAP.decoder_tokens, description="No end-of-sequence before this many tokens."
    )
    stop_token_ids: list[TokenId] = Field(
        [],
        max_length=CAP.stop_token_ids,
        description="Token ids that end generation, besides the model's EOS.",
    )
    ignore_eos: bool = Field(False, description="Generate on after the model's EOS.")
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=100, description="Above 1, tokens that the decoder has seen become less likely."
    )
    presence_penalty: float = Field(
        0, ge=-2, le=2, description="Taken off the logits of tokens that have been generated."
    )
    frequency_penalty: float = Field(
        0, ge=-2, le=2, description="Taken off a token's logit each time it has been generated."
    )
    no_repeat_ngram_size: int | None = Field(
        None, ge=0, le=CAP.ngram_size, description="No n-gram of this size occurs twice; 0 is off."
    )
    encoder_no_repeat_ngram_size: int | None = Field(
        None, ge=0, le=CAP.ngram_size, description="No n-gram of this size is copied from the encoder prompt."
    )
    bad_words: list[Annotated[str, Field(min_length=1, max_length=CAP.bad_word_chars)]] = Field(
        [], max_length=CAP.bad_words, description="Texts not to be generated."
    )
    bad_words_ids: list[TokenSequence] | None = Field(
        None, max_length=CAP.bad_words, description="Sequences of token ids not to be generated."
    )
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=CAP.logit_bias, description="Token id to what is added to its logit."
    )
    forced_bos_token_id: TokenId | None = Field(
        None, description="The first token, unless there is a decoder prompt: often the target language."
    )
    forced_eos_token_id: TokenId | None = Field(None, description="The last token, where max_tokens is met.")
    suppress_tokens: list[TokenId] | None = Field(
        None, max_length=CAP.suppress_tokens, description="Token ids that are never generated."
    )
    begin_suppress_tokens: list[TokenId] | None = Field(
        None, max_length=CAP.suppress_tokens, description="Token ids that are not generated first."
    )
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")
    temperature: float | None = Field(
        None,
        ge=0,
        le=100,
        description="0 takes the likeliest; above, logits are divided by it and tokens are drawn.",
    )
    top_k: int | None = Field(None, ge=-1, le=_INT32_MAX, description="Keep the k likeliest; 0 or -1 is off.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Keep the smallest set of tokens with at least this probability."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Drop tokens below this share of the likeliest token's probability."
    )
    typical_p: float | None = Field(
        None, gt=0, le=1, description="Keep the tokens nearest the expected surprise, up to this probability."
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="The same seed gives the same samples, whatever else the server is doing.",
    )

    def __init__(self, **values: Any) -> None:
        if isinstance(bias := values.get("logit_bias"), dict):  # JSON's keys are strings
            values["logit_bias"] = {_integer(key): value for key, value in bias.items()}
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise invalid(error) from None

    @model_validator(mode="after")
    def _lengths_fit_together(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"must not exceed max_tokens, got {self.min_tokens} > {self.max_tokens}", field="min_tokens"
            )
        return self


class SamplingParams(DecodingParams):
    """Greedy decoding or sampling of one request. None means the model's own default.

    Precedence: this request, then the server's own settings, then the model's `generation_config.json` (or,
    where it has none, its `config.json`), then greedy decoding. Where a model's own way is beam search, so is
    that of a request without a temperature above 0, unless it sets num_beams to 1.
    Raises `InvalidRequest`, naming the field, for a wrong type, a value out of range, a combination
    that cannot hold, or an unknown name.

    Example: `SamplingParams(temperature=0.8, top_p=0.95, max_tokens=64, seed=7, stop=["\\n"])`
    """

    num_beams: int | None = Field(
        None, ge=1, le=1, description="1: no beam search, even where it is the model's own way."
    )
    length_penalty: LengthPenalty = None
    early_stopping: WhenToStop = None
    n: int = Field(1, ge=1, le=CAP.n, description="Independent samples of each prompt.")
    stop: list[Annotated[str, Field(min_length=1, max_length=CAP.stop_string_chars)]] = Field(
        [], max_length=CAP.stop_strings, description="Texts that end generation; not part of the output."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=CAP.logprobs,
        description="Log-probability of each token and of this many likeliest alternatives.",
    )
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=CAP.logprobs,
        description="The same for what the decoder is given: its prompt, less the first token.",
    )

    def __init__(self, **values: Any) -> None:
        stop = values.get("stop")
        if isinstance(stop, str):  # one stop text may be given bare; "" is none
            values["stop"] = [stop] if stop else []
        elif stop is None:
            values.pop("stop", None)
        super().__init__(**values)

    @property
    def outputs(self) -> int:
        """Answers to a prompt."""
        return self.n

    def with_beams(self) -> BeamSearchParams:
        """The same for a model whose own way is beam search. Raises InvalidRequest, naming the field, for
        what does not go with it."""
        try:
            return BeamSearchParams(**self.model_dump(exclude_unset=True, exclude={"num_beams"}))
        except InvalidRequest as error:
            if error.field not in _NOT_WITH_BEAMS:
                raise
            raise InvalidRequest(
                f"{error.message}; this model's own way is beam search, which num_beams=1 or a temperature "
                "above 0 leaves",
                field=error.field,
            ) from None


class BeamSearchParams(DecodingParams):
    """Beam search of one request, with transformers' semantics. None means the model's own default.

    With a temperature above 0 the beams' continuations are drawn, without replacement, each with its whole
    beam's probability: transformers' beam sampling, `num_beams` with `do_sample`. A stream delivers nothing
    before the end: until then the best beam may still change. Refusals are those of `SamplingParams`.

    Example: `BeamSearchParams(num_beams=4, num_return_sequences=4, length_penalty=0.6, max_tokens=64)`
    """

    num_beams: int | None = Field(
        None, ge=1, le=CAP.num_beams, description="Beams kept at each step; 1 is no search."
    )
    num_return_sequences: int = Field(
        1, ge=1, le=CAP.num_beams, description="Answers to return, best first; at most num_beams."
    )
    length_penalty: LengthPenalty = None
    early_stopping: WhenToStop = None

    def __init__(self, **values: Any) -> None:
        for name, (neutral, why) in _NOT_WITH_BEAMS.items():
            if (value := values.pop(name, None)) is not None and value not in neutral:
                raise InvalidRequest(why, field=name)
        super().__init__(**values)

    @model_validator(mode="after")
    def _answers_fit_beams(self) -> Self:
        if self.num_beams is not None and self.num_return_sequences > self.num_beams:
            raise InvalidRequest(
                f"must not exceed num_beams, got {self.num_return_sequences} > {self.num_beams}",
                field="num_return_sequences",
            )
        return self

    @property
    def outputs(self) -> int:
        """Answers to a prompt."""
        return self.num_return_sequences


Params = SamplingParams | BeamSearchParams

# With the values that ask for nothing, which may be written out.
_NOT_WITH_BEAMS: dict[str, tuple[list[object], str]] = {
    "n": ([1], "does not go with beam search: ask for num_return_sequences"),
    "stop": ([[], ""], "does not go with beam search: give stop_token_ids"),
    "logprobs": ([], "does not go with beam search, whose answers have a score"),
    "prompt_logprobs": ([], "does not go with beam search: score the prompt as a target"),
    "num_beam_groups": ([1], "diverse beam search is not supported"),
    "diversity_penalty": ([0], "diverse beam search is not supported"),
    "penalty_alpha": ([0], "contrastive search is not supported"),
}


# The parameters of beam search, with the value of each that asks for none.
_OF_BEAMS: dict[str, object] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
    "early_stopping": False,
}


def params_of(values: dict[str, Any]) -> Params:
    """Parameters of a protocol in which all stand side by side: those of beam search where one of them asks
    for it. What asks for nothing, such as a length penalty of 1, may be written out."""
    asking = {name for name, neutral in _OF_BEAMS.items() if values.get(name) not in (None, neutral)}
    if values.get("num_beams") == 1:
        asking &= {"num_return_sequences"}  # the others have no effect
    if asking:
        return BeamSearchParams(**values)
    return SamplingParams(**{name: value for name, value in values.items() if name != "num_return_sequences"})


def invalid(error: ValidationError, prefix: str = "") -> InvalidRequest:
    """The first complaint of a pydantic error as an `InvalidRequest` that names the field."""
    first = error.errors(include_url=False)[0]
    if isinstance(own := first.get("ctx", {}).get("error"), InvalidRequest):  # a validator of ours
        return own
    parts = (str(part) for part in first["loc"])
    field = ".".join(part for part in parts if part != "[key]" and not part.startswith("function-"))
    if first["type"] == "extra_forbidden":
        return InvalidRequest("unknown parameter", field=prefix + field)
    got = first.get("input")
    shown = "" if first["type"] == "missing" else f", got {_short(got)}"
    return InvalidRequest(f"{first['msg']}{shown}", field=(prefix + field) or None)


def _integer(key: object) -> object:
    return int(key) if isinstance(key, str) and re.fullmatch("[0-9]{1,10}", key) else key


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def for_each(
    params: Params | Sequence[Params | None] | None, prompts: int, field: str
) -> Sequence[Params | None]:
    """Parameters for each prompt; single ones hold for all. Raises InvalidRequest, naming the field."""
    if params is None or isinstance(params, DecodingParams):
        return [params] * prompts
    if not isinstance(params, Sequence):
        kind = type(params).__name__  # type: ignore[unreachable]  # not every caller checks types
        raise InvalidRequest(f"must be SamplingParams, BeamSearchParams or a list, not {kind}", field=field)
    if len(params) != prompts:
        raise InvalidRequest(
            f"one, or one for each prompt: got {len(params)} for {prompts} prompts", field=field
        )
    return params
