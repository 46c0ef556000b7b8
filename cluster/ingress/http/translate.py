"""LibreTranslate's API, for models that say what they translate: by tasks in their config,
`task_specific_params` of the form {"translation_en_to_fr": {"prefix": "translate English to French: "}}, as
T5 does; or by the languages of their tokenizer, as mBART, M2M100, NLLB and Marian do."""

from __future__ import annotations

import re
from itertools import islice
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tandem.cluster.ingress.documents import answer_segments
from tandem.cluster.ingress.http.body import read_json_or_form, unless_disconnected
from tandem.cluster.ingress.service import Call, Service
from tandem.errors import InvalidRequest, renaming_fields
from tandem.inputs import TaskOptions
from tandem.limits import DEFAULT_LIMITS
from tandem.params import BeamSearchParams, Params, SamplingParams, invalid
from tandem.workers.requests.segmentation import Document, Split
from tandem.workers.requests.tasks import Tasks

_PREFIX: Final = re.compile(r"translate (\w+) to (\w+):", re.IGNORECASE)

_FIELDS: Final = {"prompt": "q", "source_language": "source", "target_language": "target"}

# Besides the likeliest translation, LibreTranslate's alternatives are sampled; from a fixed seed, so that
# the same text has the same ones.
_ALTERNATIVE: Final[dict[str, Any]] = {"temperature": 0.7, "top_p": 0.9, "seed": 0}


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    q: str | list[str]
    source: str
    target: str
    format: Literal["text"] | None = None
    split: Split = "sentence"  # Tandem's extension
    # Forms have no numbers.
    alternatives: Annotated[
        int, BeforeValidator(lambda v: int(v) if isinstance(v, str) and v.isdecimal() else v)
    ] = Field(0, ge=0, le=DEFAULT_LIMITS.n - 1)
    api_key: str | None = None  # LibreTranslate's clients send one; who may call is the gateway's business


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    request_builder = service.request_builder
    limits = service.config.limits

    @router.post("/translate")
    async def translate(request: Request) -> Response:
        with service.call("http", "translate") as call:
            body = _parse(await read_json_or_form(request, limits))
            texts = [body.q] if isinstance(body.q, str) else body.q
            most = limits.prompts // (1 + body.alternatives)
            if not 0 < len(texts) <= most:
                raise InvalidRequest(f"1 to {most} texts, got {len(texts)}", field="q")
            # Nothing here detects languages, but there may be only one that goes to the target.
            source = None if body.source == "auto" and not request_builder.tasks.languages else body.source
            told = TaskOptions(source_language=source, target_language=body.target)
            request_id = request.headers.get("x-request-id")
            answers = await unless_disconnected(
                request.receive,
                _translate(call, service, texts, body, told, request_id),
            )
        best = [answer[0] for answer in answers]
        others = [answer[1:] for answer in answers]
        single = isinstance(body.q, str)
        shown: dict[str, Any] = {"translatedText": best[0] if single else best}
        if body.alternatives:
            shown["alternatives"] = others[0] if single else others
        return JSONResponse(shown)

    @router.get("/languages")
    async def languages() -> Response:
        if known := list(request_builder.tasks.languages):
            return JSONResponse([{"code": code, "name": code, "targets": known} for code in known])
        names = _names(request_builder.tasks)
        targets: dict[str, list[str]] = {code: [] for code in names}
        for pair in request_builder.tasks.pairs:
            targets[pair.source].append(pair.target)
        return JSONResponse([{"code": code, "name": names[code], "targets": targets[code]} for code in names])

    return router


async def _translate(
    call: Call, service: Service, texts: list[str], body: _Body, told: TaskOptions, request_id: str | None
) -> list[list[str]]:
    """For each text the likeliest translation, then up to `alternatives` different ones.

    Texts are translated segment by segment: `call.segment` makes a Document of each, whose `segments` are
    prompts and whose `join` puts their translations together.
    """
    with renaming_fields(_FIELDS):
        defaults = service.request_builder.tasks.resolve(**told).defaults
        # A model whose own way is beam search translates best by it.
        params: list[Params] = [(BeamSearchParams if defaults.beams else SamplingParams)(temperature=0)]
        if body.alternatives:
            params.append(SamplingParams(n=body.alternatives, **_ALTERNATIVE))
        documents = await call.segment(texts, body.split, **told)
        outputs = await answer_segments(
            call,
            [segment for document in documents for segment in document.segments],
            params,
            timeout_s=service.config.limits.timeout_s,
            request_id=request_id,
            **told,
        )
    samples = ([sample.text for output in each for sample in output.outputs] for each in outputs)
    return [_joined(document, list(islice(samples, len(document.segments)))) for document in documents]


def _joined(document: Document, samples: list[list[str]]) -> list[str]:
    """The different translations of a document: one of its segments' first samples, one of their second, …"""
    if not samples:
        return [document.join([])]
    return list(dict.fromkeys(map(document.join, zip(*samples, strict=True))))


def _parse(values: dict[str, Any]) -> _Body:
    try:
        return _Body.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None


def _names(tasks: Tasks) -> dict[str, str]:
    """The languages' names by code: English ones, as the prefixes spell them."""
    names: dict[str, str] = {}
    for pair in tasks.pairs:
        match = _PREFIX.match(tasks.prefix(pair.task))
        for code, name in ((pair.source, match and match[1]), (pair.target, match and match[2])):
            names.setdefault(code, name or code)
    return names
