"""LibreTranslate's API, for models that say what they translate: by tasks in their config,
`task_specific_params` of the form {"translation_en_to_fr": {"prefix": "translate English to French: "}}, as
T5's; or by the languages of their tokenizer, as mBART's, M2M100's, NLLB's and Marian's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tandem.cluster.http_body import read_json_or_form, unless_disconnected
from tandem.cluster.service import Call, Service
from tandem.errors import InvalidRequest
from tandem.inputs import Prompt
from tandem.limits import DEFAULT_LIMITS
from tandem.params import BeamSearchParams, Params, SamplingParams, invalid

_TASK: Final = re.compile(r"translation_([A-Za-z]{2,3}(?:[-_]\w+)?)_to_([A-Za-z]{2,3}(?:[-_]\w+)?)")
_PREFIX: Final = re.compile(r"translate (\w+) to (\w+):", re.IGNORECASE)

# Beside the likeliest translation, LibreTranslate's alternatives are sampled; from a fixed seed, so that
# the same text has the same ones.
_ALTERNATIVE: Final[dict[str, Any]] = {"temperature": 0.7, "top_p": 0.9, "seed": 0}


@dataclass(frozen=True, slots=True)
class _Task:
    source: str
    target: str
    prefix: str = ""
    told: bool = False  # a multilingual model is told both languages


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    q: str | list[str]
    source: str
    target: str
    format: Literal["text"] | None = None
    # Forms have no numbers.
    alternatives: Annotated[
        int, BeforeValidator(lambda v: int(v) if isinstance(v, str) and v.isdecimal() else v)
    ] = Field(0, ge=0, le=DEFAULT_LIMITS.n - 1)
    api_key: str | None = None  # LibreTranslate's clients send one; who may call is the gateway's business


def routes(service: Service) -> APIRouter:
    router = APIRouter()
    frontend = service.frontend
    tasks = _tasks(frontend.info.task_prefixes)
    if frontend.language_pair is not None:
        tasks.append(_Task(*frontend.language_pair))
    limits = service.config.limits

    @router.post("/translate")
    async def translate(request: Request) -> Response:
        with service.call("http", "translate") as call:
            body = _parse(await read_json_or_form(request, limits))
            if frontend.languages:
                task = _Task(body.source, body.target, told=True)
            else:
                task = _task(tasks, body, service.model.id)
            texts = [body.q] if isinstance(body.q, str) else body.q
            most = limits.prompts // (1 + body.alternatives)
            if not 0 < len(texts) <= most:
                raise InvalidRequest(f"1 to {most} texts, got {len(texts)}", field="q")
            if not all(texts):  # with the prefix before it, the validator would not notice
                raise InvalidRequest("must not be empty", field="q")
            request_id = request.headers.get("x-request-id")
            # A model whose own way is beam search translates best by it.
            beams = service.frontend.info.defaults.beams
            likeliest = BeamSearchParams() if beams else SamplingParams(temperature=0)
            answers = await unless_disconnected(
                request.receive, _translate(call, task, texts, likeliest, body.alternatives, request_id)
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
        if known := list(frontend.languages):
            return JSONResponse([{"code": code, "name": code, "targets": known} for code in known])
        names = _names(tasks)
        targets: dict[str, list[str]] = {code: [] for code in names}
        for task in tasks:
            targets[task.source].append(task.target)
        return JSONResponse([{"code": code, "name": names[code], "targets": targets[code]} for code in names])

    return router


async def _translate(
    call: Call, task: _Task, texts: list[str], likeliest: Params, alternatives: int, request_id: str | None
) -> list[list[str]]:
    """For each text the likeliest translation, then up to `alternatives` different ones."""
    prompts: list[Prompt] = [task.prefix + text for text in texts]
    told: dict[str, Any] = {"request_id": request_id}
    if task.told:
        told |= {"source_language": task.source, "target_language": task.target}
    try:
        requests = await call.prepare(prompts, likeliest, **told)
        if alternatives:
            sampling = SamplingParams(n=alternatives, **_ALTERNATIVE)
            requests += await call.prepare(prompts, sampling, **told)
    except InvalidRequest as error:
        ours = {"prompt": "q", "source_language": "source", "target_language": "target"}
        raise InvalidRequest(error.message, field=ours.get(str(error.field), error.field)) from None
    outputs = await call.generate(requests)
    answers = [[sample.text for sample in output.outputs] for output in outputs]
    count = len(texts)
    for best, others in zip(answers[:count], answers[count:], strict=False):
        best += (text for text in dict.fromkeys(others) if text not in best)
    return answers[:count]


def _parse(values: dict[str, Any]) -> _Body:
    try:
        return _Body.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None


def _tasks(prefixes: Mapping[str, str]) -> list[_Task]:
    found = ((_TASK.fullmatch(name), prefix) for name, prefix in prefixes.items())
    return [_Task(match[1], match[2], prefix) for match, prefix in found if match]


def _task(tasks: list[_Task], body: _Body, model: str) -> _Task:
    if not tasks:
        raise InvalidRequest(f"model {model!r} declares no translation tasks")
    targets = [task for task in tasks if task.target == body.target]
    if not targets:
        known = ", ".join(sorted({task.target for task in tasks}))
        raise InvalidRequest(f"{body.target[:20]!r} is not supported; there are {known}", field="target")
    sources = [task for task in targets if body.source in (task.source, "auto")]
    if not sources:
        known = ", ".join(sorted({task.source for task in targets}))
        raise InvalidRequest(f"{body.source[:20]!r} is not supported; there are {known}", field="source")
    if len(sources) > 1:  # nothing here detects languages
        known = ", ".join(sorted(task.source for task in sources))
        raise InvalidRequest(f"'auto' could be any of {known}; name one", field="source")
    return sources[0]


def _names(tasks: list[_Task]) -> dict[str, str]:
    """The languages' names by code: English ones, as the prefixes spell them."""
    names: dict[str, str] = {}
    for task in tasks:
        match = _PREFIX.match(task.prefix)
        for code, name in ((task.source, match and match[1]), (task.target, match and match[2])):
            names.setdefault(code, name or code)
    return names
