"""The fields of OpenAI's embeddings, and their JSON."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import ConfigDict

from tandem.cluster.ingress.http.body import validated
from tandem.cluster.ingress.http.completions import prompts_of
from tandem.cluster.ingress.http.openai_fields import EMBEDDING, Fields, refuse_unsupported
from tandem.errors import InvalidRequest
from tandem.inputs import SingletonPrompt
from tandem.outputs import EmbeddingOutput
from tandem.params import Pooling
from tandem.workers.requests.model_info import ModelInfo


class EmbeddingBody(Fields):
    """What is no request option."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    input: Any = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: Literal["mean", "first"] | None = None  # Tandem's
    normalize: bool | None = None  # vLLM's: to length 1


@dataclass(frozen=True, slots=True)
class EmbeddingShape:
    """One request for embeddings, and the shape of its answer."""

    model: str
    prompts: list[SingletonPrompt]
    pooling: Pooling
    base64: bool
    normalize: bool

    @classmethod
    def of(cls, values: dict[str, Any], model: str, info: ModelInfo) -> Self:
        """Reads a body, less its request options. Raises InvalidRequest, naming the field."""
        refuse_unsupported(values, EMBEDDING)
        body = validated(EmbeddingBody, values)
        if body.dimensions is not None and info.encoder_width not in (None, body.dimensions):
            raise InvalidRequest(
                f"is not supported: the encoder's states have {info.encoder_width} numbers",
                field="dimensions",
            )
        return cls(
            model,
            prompts_of(body.input, "input"),
            body.pooling or "mean",
            base64=body.encoding_format == "base64",
            normalize=bool(body.normalize),
        )

    def whole(self, outputs: Sequence[EmbeddingOutput]) -> dict[str, Any]:
        """The answer; a base64 one has float32, little-endian."""
        tokens = sum(output.encoder_tokens for output in outputs)
        return {
            "id": f"embd-{outputs[0].request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": self.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": self._embedding(output)}
                for index, output in enumerate(outputs)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _embedding(self, output: EmbeddingOutput) -> list[float] | str:
        values = output.embedding
        if self.normalize:
            values = values / max(float(np.linalg.norm(values)), 1e-30)  # zeros stay what they are
        if self.base64:
            return base64.b64encode(values.astype("<f4").tobytes()).decode()
        floats: list[float] = values.tolist()
        return floats
