"""Tandem: serving for encoder-decoder models, on one machine (`LLM`) or a cluster (`Client`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tandem.client import AsyncClient, Client
    from tandem.errors import (
        Cancelled,
        DeadlineExceeded,
        InternalError,
        InvalidRequest,
        ModelLoadError,
        ModelNotFound,
        Overloaded,
        RequestTooLarge,
        TandemError,
        Unauthenticated,
        Unavailable,
    )
    from tandem.inputs import (
        ExplicitEncoderDecoderPrompt,
        Media,
        MultiModalData,
        Prompt,
        TextPrompt,
        TokensPrompt,
        zip_enc_dec_prompt_lists,
    )
    from tandem.limits import Limits
    from tandem.offline import LLM
    from tandem.outputs import (
        CompletionOutput,
        EmbeddingOutput,
        RequestOutput,
        ScoreOutput,
        TargetScore,
        TextDelta,
        TokenLogprobs,
    )
    from tandem.params import BeamSearchParams, SamplingParams
    from tandem.pipelines import (
        ImageTextToTextPipeline,
        ImageToTextPipeline,
        Pipeline,
        SpeechPipeline,
        pipeline,
    )
    from tandem.transcription import (
        ServerVad,
        Transcription,
        TranscriptionDelta,
        TranscriptionParams,
        TranscriptionProgress,
        TranscriptionSegment,
        TranscriptionWord,
    )

# Imported on first use: `import tandem` costs nothing, and a client needs no torch.
_WHERE = {
    "tandem.client": ("AsyncClient", "Client"),
    "tandem.errors": (
        "Cancelled", "DeadlineExceeded", "InternalError", "InvalidRequest", "ModelLoadError",
        "ModelNotFound", "Overloaded", "RequestTooLarge", "TandemError", "Unauthenticated",
        "Unavailable",
    ),
    "tandem.inputs": (
        "ExplicitEncoderDecoderPrompt", "Media", "MultiModalData", "Prompt", "TextPrompt", "TokensPrompt",
        "zip_enc_dec_prompt_lists",
    ),
    "tandem.limits": ("Limits",),
    "tandem.offline": ("LLM",),
    "tandem.outputs": (
        "CompletionOutput", "EmbeddingOutput", "RequestOutput", "ScoreOutput", "TargetScore", "TextDelta",
        "TokenLogprobs",
    ),
    "tandem.params": ("BeamSearchParams", "SamplingParams"),
    "tandem.pipelines": (
        "ImageTextToTextPipeline",
        "ImageToTextPipeline",
        "Pipeline",
        "SpeechPipeline",
        "pipeline",
    ),
    "tandem.transcription": (
        "ServerVad", "Transcription", "TranscriptionDelta", "TranscriptionParams",
        "TranscriptionProgress", "TranscriptionSegment", "TranscriptionWord",
    ),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "LLM",
    "AsyncClient",
    "BeamSearchParams",
    "Cancelled",
    "Client",
    "CompletionOutput",
    "DeadlineExceeded",
    "EmbeddingOutput",
    "ExplicitEncoderDecoderPrompt",
    "ImageTextToTextPipeline",
    "ImageToTextPipeline",
    "InternalError",
    "InvalidRequest",
    "Limits",
    "Media",
    "ModelLoadError",
    "ModelNotFound",
    "MultiModalData",
    "Overloaded",
    "Pipeline",
    "Prompt",
    "RequestOutput",
    "RequestTooLarge",
    "SamplingParams",
    "ScoreOutput",
    "ServerVad",
    "SpeechPipeline",
    "TandemError",
    "TargetScore",
    "TextDelta",
    "TextPrompt",
    "TokenLogprobs",
    "TokensPrompt",
    "Transcription",
    "TranscriptionDelta",
    "TranscriptionParams",
    "TranscriptionProgress",
    "TranscriptionSegment",
    "TranscriptionWord",
    "Unauthenticated",
    "Unavailable",
    "pipeline",
    "zip_enc_dec_prompt_lists",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tandem' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
