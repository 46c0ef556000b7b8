"""/score: the log-likelihood of given targets for a prompt."""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from tandem.cluster.ingress.http.body import read_json, unless_disconnected
from tandem.cluster.ingress.service import Call, Service
from tandem.errors import InvalidRequest
from tandem.inputs import ExplicitEncoderDecoderPrompt, Prompt, SingletonPrompt, TokensPrompt
from tandem.outputs import ScoreOutput
from tandem.params import invalid

_IDS: Final = re.compile(r"\.?prompt_token_ids$")  # ends the validator's name of what came as ids


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    prompt: str | list[int]
    decoder_prompt: str | list[int] | None = None
    targets: list[str | list[int]]
    model: str | None = None
    priority: int = 0  # see RequestBuilder.prepare
    timeout_s: float | None = None
    source_language: str | None = None
    target_language: str | None = None
    task: str | None = None


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/score")
    async def score(request: Request) -> Response:
        """{"prompt": text or ids, "targets": [text or ids], "decoder_prompt"?, "model"?, "priority"?,
        "timeout_s"?, "source_language"?, "target_language"?, "task"?} → for each
        target its ids, their log-probabilities and the sum."""
        with service.call("http", "score") as call:
            try:
                body = _Body.model_validate(await read_json(request, service.config.limits))
            except ValidationError as error:
                raise invalid(error) from None
            work = _score(call, body, request.headers.get("x-request-id"))
            output = await unless_disconnected(request.receive, work)
        return JSONResponse(_shown(output, service.model.id))

    return router


async def _score(call: Call, body: _Body, request_id: str | None) -> ScoreOutput:
    encoder = _singleton(body.prompt)
    prompt: Prompt = encoder
    if body.decoder_prompt is not None:
        decoder = _singleton(body.decoder_prompt)
        prompt = ExplicitEncoderDecoderPrompt(encoder_prompt=encoder, decoder_prompt=decoder)
    try:
        prepared = await call.prepare_score(
            prompt,
            [_singleton(target) for target in body.targets],
            model=body.model,
            request_id=request_id,
            priority=body.priority,
            timeout_s=body.timeout_s,
            source_language=body.source_language,
            target_language=body.target_language,
            task=body.task,
        )
    except InvalidRequest as error:
        ours = {"": "prompt", "encoder_prompt": "prompt", "request_id": "x-request-id"}
        field = _IDS.sub("", error.field) if error.field else None
        raise InvalidRequest(error.message, field=None if field is None else ours.get(field, field)) from None
    return await call.score(prepared)


def _singleton(value: str | list[int]) -> SingletonPrompt:
    return value if isinstance(value, str) else TokensPrompt(prompt_token_ids=value)


def _shown(output: ScoreOutput, model: str) -> dict[str, Any]:
    return {
        "id": output.request_id,
        "object": "score",
        "model": model,
        "scores": [
            {
                "index": index,
                "token_ids": score.token_ids,
                "token_logprobs": score.logprobs,
                "logprob": score.cumulative_logprob,
            }
            for index, score in enumerate(output.scores)
        ],
        "usage": {
            "prompt_tokens": len(output.encoder_prompt_token_ids) or len(output.prompt_token_ids),
            "target_tokens": sum(len(score.token_ids) for score in output.scores),
        },
    }
