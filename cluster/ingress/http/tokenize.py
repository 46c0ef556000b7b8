"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from tandem.cluster.ingress.arrivals import http_arrival
from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.http.body import read_json, unless_disconnected, validated
from tandem.cluster.ingress.http.openai_fields import TOKENIZE, refuse_unsupported
from tandem.cluster.ingress.service import Service
from tandem.errors import InvalidRequest


class _TokenizeBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    prompt: str | None = None
    text: str | None = None  # the prompt by another name
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class _DetokenizeBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool | None = None  # Tandem's


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        """{"text" or "prompt": str, "model"?: str, "add_special_tokens"?: bool, "return_token_strs"?: bool} →
        {"tokens": [int], "count": int, "max_model_len": int}: an encoder input."""
        with Call(service, "http", "tokenize", http_arrival(request.scope)) as call:
            values = await read_json(request, service.config.limits)
            refuse_unsupported(values, TOKENIZE)
            body = validated(_TokenizeBody, values)
            if (body.text is None) == (body.prompt is None):
                raise InvalidRequest("exactly one of text and prompt is required", field="text")
            field, text = ("prompt", body.prompt) if body.text is None else ("text", body.text)
            assert text is not None
            special = body.add_special_tokens is not False
            work = call.tokenize(text, field=field, model=body.model, special=special)
            ids = await unless_disconnected(request.receive, work)
            answer: dict[str, Any] = {
                "tokens": ids,
                "count": len(ids),
                "max_model_len": service.request_builder.max_prompt_tokens,
            }
            if body.return_token_strs:
                answer["token_strs"] = service.request_builder.token_strings(ids)
        return JSONResponse(answer)

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        """{"tokens": [int], "model"?: str, "skip_special_tokens"?: bool} → {"prompt": str}: the text that the
        tokenizer's decode gives, of what a decoder generates."""
        with Call(service, "http", "detokenize", http_arrival(request.scope)) as call:
            body = validated(_DetokenizeBody, await read_json(request, service.config.limits))
            work = call.detokenize(
                body.tokens,
                field="tokens",
                model=body.model,
                skip_special_tokens=bool(body.skip_special_tokens),
            )
            text = await unless_disconnected(request.receive, work)
        return JSONResponse({"prompt": text})

    return router
