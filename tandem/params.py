"""How to decode: what a caller asks for (`SamplingParams`)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tandem.errors import InvalidRequest
from tandem.limits import DEFAULT_LIMITS as CAP

_INT32_MAX = 2**31 - 1


class SamplingParams(BaseModel):
    """Decoding parameters of one request. None means the model's own default.

    Precedence: this request, then the model's `generation_config.json`, then greedy decoding.
    Raises `InvalidRequest`, naming the field, for a wrong type, a value out of range, a combination
    that cannot hold, or an unknown name.

    Example: `SamplingParams(temperature=0.8, top_p=0.95, max_tokens=64, seed=7, stop=["\\n"])`
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    n: int = Field(1, ge=1, le=CAP.n, description="Independent samples of each prompt.")
    temperature: float | None = Field(
        None, ge=0, le=100, description="0 is greedy; above, logits are divided by it."
    )
    top_k: int | None = Field(None, ge=-1, le=_INT32_MAX, description="Keep the k likeliest; 0 or -1 is off.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Keep the smallest set of tokens with at least this probability."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Drop tokens below this share of the likeliest token's probability."
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="The same seed gives the same samples, whatever else the server is doing.",
    )
    max_tokens: int | None = Field(None, ge=1, le=CAP.decoder_tokens, description="Most tokens to generate.")
    min_tokens: int = Field(
        0, ge=0, le=CAP.decoder_tokens, description="No end-of-sequence before this many tokens."
    )
    stop: list[Annotated[str, Field(min_length=1, max_length=CAP.stop_string_chars)]] = Field(
        [], max_length=CAP.stop_strings, description="Texts that end generation; not part of the output."
    )
    stop_token_ids: list[Annotated[int, Field(ge=0, le=_INT32_MAX)]] = Field(
        [],
        max_length=CAP.stop_token_ids,
        description="Token ids that end generation, beside the model's EOS.",
    )
    ignore_eos: bool = Field(False, description="Generate on after the model's EOS.")
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=100, description="Above 1, tokens that the decoder has seen become less likely."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=CAP.logprobs,
        description="Log-probability of each token and of this many likeliest alternatives.",
    )
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")

    def __init__(self, **values: Any) -> None:
        stop = values.get("stop")
        if isinstance(stop, str):  # one stop text may be given bare
            values["stop"] = [stop]
        elif stop is None:
            values.pop("stop", None)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise invalid(error) from None

    @model_validator(mode="after")
    def _fits_together(self) -> SamplingParams:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"must not exceed max_tokens, got {self.min_tokens} > {self.max_tokens}", field="min_tokens"
            )
        return self


def invalid(error: ValidationError, prefix: str = "") -> InvalidRequest:
    """The first complaint of a pydantic error as an `InvalidRequest` that names the field."""
    first = error.errors(include_url=False)[0]
    if isinstance(own := first.get("ctx", {}).get("error"), InvalidRequest):  # a validator of ours
        return own
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function-"))
    if first["type"] == "extra_forbidden":
        return InvalidRequest("unknown parameter", field=prefix + field)
    got = first.get("input")
    shown = "" if first["type"] == "missing" else f", got {_short(got)}"
    return InvalidRequest(f"{first['msg']}{shown}", field=(prefix + field) or None)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
