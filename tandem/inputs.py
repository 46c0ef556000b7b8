"""What to decode from: the kinds of prompt, the media that go with them, and a request's options."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NamedTuple,
    NotRequired,
    TypedDict,
    TypeVar,
    Union,
    cast,
    get_args,
)

from tandem.errors import InvalidRequest
from tandem.media import file_bytes, png, wav

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as PILImage

Modality = Literal["audio", "image"]
MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)


class Media(NamedTuple):
    """One recording or image as it travels: the bytes of a file, which a worker decodes."""

    modality: Modality
    data: bytes
    header_text: str = ""  # drawn above the image for the model to read; whoever reads the prompt sets it


# A file's bytes, or its path, which is read where the prompt is split: in the caller's process.
File = bytes | str | os.PathLike[str]
# A file, or a mono waveform of floats between -1 and 1 with its sample rate in Hz.
Audio = File | tuple["NDArray[Any]", int]
# A file, a Pillow image, or an array, uint8 [height, width, 3]. The last two travel as PNG files.
Image = Union[File, "PILImage", "NDArray[Any]"]


class MultiModalData(TypedDict, total=False):
    """What an encoder reads besides text: one of a modality, or a list."""

    audio: Audio | list[Audio]
    image: Image | list[Image]


class TextPrompt(TypedDict):
    """A prompt as text; the model's tokenizer makes the ids. With media it may be empty."""

    prompt: str
    multi_modal_data: NotRequired[MultiModalData]  # only an encoder prompt has them


class TokensPrompt(TypedDict):
    """A prompt as token ids, taken as they are: an encoder prompt usually ends with EOS."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]  # shown in the output, not read
    multi_modal_data: NotRequired[MultiModalData]  # only an encoder prompt has them


SingletonPrompt = str | TextPrompt | TokensPrompt


class ExplicitEncoderDecoderPrompt(TypedDict):
    """An encoder prompt and the beginning of the decoder's answer; each of any singleton kind."""

    encoder_prompt: SingletonPrompt
    decoder_prompt: SingletonPrompt | None


Prompt = SingletonPrompt | ExplicitEncoderDecoderPrompt
PromptT = TypeVar("PromptT", bound=Prompt)


class TaskOptions(TypedDict, total=False):
    """A request's languages and task, as keyword arguments: see `LLM.generate`."""

    source_language: str | None
    target_language: str | None
    task: str | None


class CallOptions(TypedDict, total=False):
    """What any request may say of itself, as keyword arguments."""

    model: str | None  # None: the only one served
    request_id: str | None  # shown in the answer and in logs; None: the server makes one
    priority: int  # requests with a higher one start first, either sign; 0 where it is left out
    timeout_s: float | None  # that the request may take, from its arrival; None: the server's limit


class RequestOptions(CallOptions, TaskOptions, total=False):
    """All of a request but its prompt and its parameters, as keyword arguments. The proto's message and the
    JSON bodies have the same names."""

    truncate_prompt_tokens: int | None  # most of a prompt to read, see `LLM.generate`; None: all or nothing


TASK_OPTIONS: Final = tuple(TaskOptions.__annotations__)
CALL_OPTIONS: Final = tuple(CallOptions.__annotations__)
REQUEST_OPTIONS: Final = tuple(RequestOptions.__annotations__)


def task_options(options: RequestOptions) -> TaskOptions:
    """The options that say what the model is to do."""
    return cast(TaskOptions, {name: value for name, value in options.items() if name in TASK_OPTIONS})


def listed(prompts: PromptT | Sequence[PromptT]) -> list[PromptT]:
    """One prompt or several, as a list."""
    return cast(list[PromptT], [prompts] if isinstance(prompts, str | dict) else list(prompts))


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


class PromptSide(NamedTuple):
    """A singleton prompt, read. At least one of text and ids is set."""

    text: str | None
    token_ids: list[int] | None  # read in place of the text, which is then only shown
    media: tuple[Media, ...] = ()


class SplitPrompt(NamedTuple):
    """A prompt of any kind, read."""

    encoder: PromptSide
    decoder: PromptSide | None
    explicit: bool  # an ExplicitEncoderDecoderPrompt; any other may be a decoder-only model's


def split_prompt(prompt: Prompt) -> SplitPrompt:
    """Sorts out which kind of prompt this is, and reads the files it names.

    Raises `InvalidRequest`, naming the field, for anything else.
    """
    if not (isinstance(prompt, dict) and "encoder_prompt" in prompt):
        return SplitPrompt(_encoder_side(prompt, "prompt", "multi_modal_data"), None, explicit=False)
    if unknown := set(prompt) - {"encoder_prompt", "decoder_prompt"}:
        raise InvalidRequest("unknown key of a prompt", field=sorted(unknown)[0])
    encoder = _encoder_side(prompt["encoder_prompt"], "encoder_prompt", "encoder_prompt.multi_modal_data")  # type: ignore[typeddict-item]
    decoder = prompt.get("decoder_prompt")
    return SplitPrompt(
        encoder, None if decoder is None else decoder_side(decoder, "decoder_prompt"), explicit=True
    )


def decoder_side(prompt: object, field: str) -> PromptSide:
    """A singleton prompt of the decoder, or a target. Raises `InvalidRequest` for anything else."""
    if isinstance(prompt, dict) and "multi_modal_data" in prompt:
        raise InvalidRequest("only the encoder reads media", field=f"{field}.multi_modal_data")
    return _side(prompt, field)


def _encoder_side(prompt: object, field: str, media_field: str) -> PromptSide:
    if not isinstance(prompt, dict) or "multi_modal_data" not in prompt:
        return _side(prompt, field)
    text = {name: value for name, value in prompt.items() if name != "multi_modal_data"}
    return _side(text, field)._replace(media=_media(prompt["multi_modal_data"], media_field))


def _side(prompt: object, field: str) -> PromptSide:
    if isinstance(prompt, str):
        return PromptSide(prompt, None)
    if isinstance(prompt, dict):
        if unknown := set(prompt) - {"prompt", "prompt_token_ids"}:
            raise InvalidRequest("unknown key of a prompt", field=f"{field}.{sorted(unknown)[0]}")
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        if text is not None and not isinstance(text, str):
            raise InvalidRequest(f"must be a str, got {type(text).__name__}", field=field)
        if "prompt_token_ids" in prompt:
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                raise InvalidRequest("must be a list of integers", field=f"{field}.prompt_token_ids")
            return PromptSide(text, ids)
        if text is not None:
            return PromptSide(text, None)
    raise InvalidRequest(
        "must be a str, {'prompt': str}, {'prompt_token_ids': [int]} or "
        f"{{'encoder_prompt': …, 'decoder_prompt': …}}, got {type(prompt).__name__}",
        field=field,
    )


def _media(data: object, field: str) -> tuple[Media, ...]:
    """The media of one prompt, by modality and in each as they are given."""
    if not isinstance(data, dict):
        raise InvalidRequest(f"must be a dict, got {type(data).__name__}", field=field)
    if unknown := set(data) - set(MODALITIES):
        raise InvalidRequest(
            f"unknown modality, not {' or '.join(MODALITIES)}", field=f"{field}.{unknown.pop()}"
        )
    return tuple(
        Media(modality, _data(one, modality, f"{field}.{modality}"))
        for modality in MODALITIES
        if modality in data
        for one in (data[modality] if isinstance(data[modality], list) else [data[modality]])
    )


def recording(value: Audio, field: str) -> Media:
    """One recording, read where it is a path. Raises `InvalidRequest`, naming the field."""
    return Media("audio", _data(value, "audio", field))


def _data(value: object, modality: Modality, field: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str | os.PathLike):
        return file_bytes(value, field)
    if modality == "image":
        return png(value, field)
    if isinstance(value, tuple) and len(value) == 2:
        return wav(*value, field)
    raise InvalidRequest(
        f"must be a file's bytes or path, or (samples, sample rate), got {type(value).__name__}", field=field
    )
