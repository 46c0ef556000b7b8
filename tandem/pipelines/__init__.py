"""`pipeline`: transformers' pipelines on Tandem.

The text-to-text ones and "image-to-text" are transformers 4's; transformers 5 has none of them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Final, Literal, overload

from tandem.errors import InvalidRequest
from tandem.offline import LLM
from tandem.pipelines import image, speech, text
from tandem.pipelines.image import ImageTextToTextPipeline, ImageToTextPipeline
from tandem.pipelines.speech import SpeechPipeline
from tandem.pipelines.text import Pipeline
from tandem.workers.models.model_folder import QUICKSTART

__all__ = ["ImageTextToTextPipeline", "ImageToTextPipeline", "Pipeline", "SpeechPipeline", "pipeline"]

_Made = Pipeline | SpeechPipeline | ImageToTextPipeline | ImageTextToTextPipeline
# The tasks that are not of text alone: what makes them, and the arguments of their calls.
_OF_MEDIA: Final[Mapping[str, tuple[type[_Made], Set[str]]]] = {
    "automatic-speech-recognition": (SpeechPipeline, speech.CALL_ARGUMENTS),
    image.IMAGE_TO_TEXT: (ImageToTextPipeline, image.CALL_ARGUMENTS),
    image.IMAGE_TEXT_TO_TEXT: (ImageTextToTextPipeline, image.CALL_ARGUMENTS),
}


@overload
def pipeline(
    task: Literal["automatic-speech-recognition"],
    model: str | LLM,
    *,
    device: object = None,
    dtype: object = "auto",
    **options: Any,
) -> SpeechPipeline: ...


@overload
def pipeline(
    task: Literal["image-to-text"],
    model: str | LLM,
    *,
    device: object = None,
    dtype: object = "auto",
    **options: Any,
) -> ImageToTextPipeline: ...


@overload
def pipeline(
    task: Literal["image-text-to-text"],
    model: str | LLM,
    *,
    device: object = None,
    dtype: object = "auto",
    **options: Any,
) -> ImageTextToTextPipeline: ...


@overload
def pipeline(
    task: str, model: str | LLM = QUICKSTART, *, device: object = None, dtype: object = "auto", **options: Any
) -> Pipeline: ...


def pipeline(
    task: str,
    model: str | LLM = QUICKSTART,
    *,
    device: object = None,
    dtype: object = "auto",
    **options: Any,
) -> _Made:
    """A callable as transformers' `pipeline`: from texts or images to lists of dicts, from recordings to
    dicts.

    Args:
        task: "summarization", "translation", "translation_xx_to_yy", "text2text-generation",
            "text-generation", "automatic-speech-recognition", "image-to-text" or "image-text-to-text".
        model: a folder, a Hugging Face hub id, "quickstart", or an `LLM`, which then stays the caller's.
        device: "cpu" or -1, "cuda" or a GPU's number; None: a GPU where there is one.
        dtype: as for `LLM`, or a torch.dtype.
        options: arguments for every call (see the class's `__call__`), and options of `LLM`.

    Raises InvalidRequest for an unknown task or option, ModelLoadError for a model that cannot be served.

    Example:
        translator = pipeline("translation_en_to_fr")
        translator("I am tired.")  # [{"translation_text": "Je suis fatigué."}]
    """
    made, names = _OF_MEDIA.get(task, (Pipeline, text.CALL_ARGUMENTS))
    if made is Pipeline and not text.is_task(task):
        known = ", ".join([*text.KEYS, "translation_xx_to_yy", *_OF_MEDIA])
        raise InvalidRequest(f"must be one of {known}, got {task!r}", field="task")
    arguments = {name: options.pop(name) for name in list(options) if name in names}
    if isinstance(model, LLM):
        if options:
            raise InvalidRequest("is set already, by the LLM that was given", field=sorted(options)[0])
        return made(task, model, arguments, owned=False)
    llm = LLM(model, device=_device(device), dtype=str(dtype).removeprefix("torch."), **options)
    try:
        return made(task, llm, arguments, owned=True)
    except BaseException:
        llm.close()
        raise


def _device(device: object) -> str:
    """The device's kind, as `LLM` takes it."""
    kind = "auto" if device is None else str(device).partition(":")[0]
    return "cpu" if kind == "-1" else "cuda" if kind.isdecimal() else kind
