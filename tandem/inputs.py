"""What to decode from: the kinds of prompt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, NotRequired, TypedDict

from tandem.errors import InvalidRequest


Modality = Literal["audio", "image"]


class Media(NamedTuple):
    """An item of an encoder input that is not text, as a client sent it. Opened on a worker."""

    modality: Modality
    data: bytes  # of a file


class TextPrompt(TypedDict):
    """A prompt as text; the model's tokenizer makes the ids."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as token ids, taken as they are: an encoder prompt usually ends with EOS."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]  # shown in the output, not read


SingletonPrompt = str | TextPrompt | TokensPrompt


class ExplicitEncoderDecoderPrompt(TypedDict):
    """An encoder prompt and the beginning of the decoder's answer; each of any singleton kind."""

    encoder_prompt: SingletonPrompt
    decoder_prompt: SingletonPrompt | None


Prompt = SingletonPrompt | ExplicitEncoderDecoderPrompt


class TaskOptions(TypedDict, total=False):
    """What a request says of languages and task, as keyword arguments: see `LLM.generate`."""

    source_language: str | None
    target_language: str | None
    task: str | None


class RequestOptions(TaskOptions, total=False):
    """What a request says beside its prompt and its parameters, as keyword arguments."""

    model: str | None
    request_id: str | None
    priority: int
    timeout_s: float | None


def zip_enc_dec_prompt_lists(
    encoder_prompts: Iterable[SingletonPrompt], decoder_prompts: Iterable[SingletonPrompt | None]
) -> list[ExplicitEncoderDecoderPrompt]:
    """Pairs the two lists; raises `InvalidRequest` where their lengths differ."""
    encoders, decoders = list(encoder_prompts), list(decoder_prompts)
    if len(encoders) != len(decoders):
        raise InvalidRequest(
            f"as many decoder prompts as encoder prompts, got {len(decoders)} and {len(encoders)}",
            field="decoder_prompts",
        )
    return [
        ExplicitEncoderDecoderPrompt(encoder_prompt=e, decoder_prompt=d)
        for e, d in zip(encoders, decoders, strict=True)
    ]


class Parts(TypedDict):
    """A prompt of any kind, taken apart; exactly one of each text and ids is set, or both None."""

    encoder_text: str | None
    encoder_ids: list[int] | None
    decoder_text: str | None
    decoder_ids: list[int] | None


def split_prompt(prompt: Prompt) -> Parts:
    """Sorts out which kind of prompt this is. Raises `InvalidRequest` for anything else."""
    if isinstance(prompt, dict) and "encoder_prompt" in prompt:
        unknown = set(prompt) - {"encoder_prompt", "decoder_prompt"}
        if unknown:
            raise InvalidRequest("unknown key of a prompt", field=sorted(unknown)[0])
        encoder_text, encoder_ids = singleton(prompt["encoder_prompt"], "encoder_prompt")  # type: ignore[typeddict-item]
        decoder = prompt.get("decoder_prompt")
        decoder_text, decoder_ids = (None, None) if decoder is None else singleton(decoder, "decoder_prompt")
    else:
        encoder_text, encoder_ids = singleton(prompt, "prompt")
        decoder_text, decoder_ids = None, None
    return Parts(
        encoder_text=encoder_text, encoder_ids=encoder_ids, decoder_text=decoder_text, decoder_ids=decoder_ids
    )


def singleton(prompt: object, field: str) -> tuple[str | None, list[int] | None]:
    """The text or the ids of a singleton prompt. Raises `InvalidRequest` for anything else."""
    if isinstance(prompt, str):
        return prompt, None
    if isinstance(prompt, dict):
        unknown = set(prompt) - {"prompt", "prompt_token_ids"}
        if unknown:
            raise InvalidRequest("unknown key of a prompt", field=f"{field}.{sorted(unknown)[0]}")
        if "prompt_token_ids" in prompt:
            ids = prompt["prompt_token_ids"]
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                raise InvalidRequest("must be a list of integers", field=f"{field}.prompt_token_ids")
            return None, ids
        if isinstance(prompt.get("prompt"), str):
            return prompt["prompt"], None
    raise InvalidRequest(
        "must be a str, {'prompt': str}, {'prompt_token_ids': [int]} or "
        f"{{'encoder_prompt': …, 'decoder_prompt': …}}, got {type(prompt).__name__}",
        field=field,
    )
