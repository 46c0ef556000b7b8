"""/score: the log-likelihood of given targets for a prompt."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError

from tandem.cluster.ingress.arrivals import http_arrival
from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.http.body import FIELDS, read_json, take_options, unless_disconnected
from tandem.cluster.ingress.service import Service
from tandem.errors import renaming_fields
from tandem.inputs import (
    ExplicitEncoderDecoderPrompt,
    Prompt,
    RequestOptions,
    SingletonPrompt,
    TokensPrompt,
)
from tandem.outputs import ScoreOutput
from tandem.params import invalid


class _Body(BaseModel):
    """All but the request options."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    prompt: str | list[int]
    decoder_prompt: str | list[int] | None = None
    targets: list[str | list[int]]


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/score")
    async def score(request: Request) -> Response:
        """{"prompt": text or ids, "targets": [text or ids], "decoder_prompt"?, request options?} → for each
        target its ids, their log-probabilities and the sum."""
        with Call(service, "http", "score", http_arrival(request.scope)) as call:
            values = await read_json(request, service.config.limits)
            options = take_options(request, values)
            try:
                body = _Body.model_validate(values)
            except ValidationError as error:
                raise invalid(error) from None
            work = _score(call, body, options)
            output = await unless_disconnected(request.receive, work)
        return JSONResponse(_shown(output, service.model.id))

    return router


async def _score(call: Call, body: _Body, options: RequestOptions) -> ScoreOutput:
    encoder = _singleton(body.prompt)
    prompt: Prompt = encoder
    if body.decoder_prompt is not None:
        decoder = _singleton(body.decoder_prompt)
        prompt = ExplicitEncoderDecoderPrompt(encoder_prompt=encoder, decoder_prompt=decoder)
    with renaming_fields(FIELDS):
        targets = [_singleton(target) for target in body.targets]
        prepared = await call.prepare_score(prompt, targets, **options)
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
