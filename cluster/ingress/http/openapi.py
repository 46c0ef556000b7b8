"""`/openapi.json`: the routes as FastAPI lists them, with the bodies that they read themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.routing import BaseRoute

from tandem.cluster.ingress.http.body import Options
from tandem.cluster.ingress.http.chat import ChatBody
from tandem.cluster.ingress.http.completions import CompletionBody
from tandem.cluster.ingress.http.embeddings import EmbeddingBody
from tandem.cluster.ingress.http.errors import LIBRETRANSLATE
from tandem.cluster.ingress.http.score import ScoreBody
from tandem.cluster.ingress.http.tokenize import DetokenizeBody, TokenizeBody
from tandem.limits import Limits
from tandem.params import BeamSearchParams, SamplingParams
from tandem.transcription import TranscriptionParams
from tandem.workers.requests.segmentation.segments import SPLITS

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_IDS: Final[Schema] = {"type": "array", "items": {"type": "integer"}}
_TEXTS: Final[Schema] = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_PROMPTS: Final[Schema] = {
    "anyOf": [_TEXT, {"type": "array", "items": _TEXT}, _IDS, {"type": "array", "items": _IDS}]
}
_FILE: Final[Schema] = {"type": "string", "format": "binary"}
_DIRECTION: Final[Mapping[str, Schema]] = {
    "source": {"type": "string", "description": "A language of /languages, or auto."},
    "target": {"type": "string", "description": "A language of /languages."},
}
_AUDIO: Final = ("semantics", "task", "timestamps", "logprobs")  # the form says them in OpenAI's words
_JSON, _FORM, _MULTIPART = "application/json", "application/x-www-form-urlencoded", "multipart/form-data"
_ERRORS: Final = {
    "400": "The request is malformed, or asks for what the model cannot do.",
    "401": "A key is needed.",
    "413": "The body is too large.",
    "429": "The server is full, or a quota is used up: try again after Retry-After seconds.",
    "503": "The server cannot answer now: try again after Retry-After seconds.",
    "504": "The request's time is over.",
}


def document(routes: Sequence[BaseRoute], limits: Limits) -> dict[str, Any]:
    """The description of these routes, OpenAPI 3.1."""
    found = get_openapi(
        title="Tandem",
        version=version("tandem-serve"),
        summary="Encoder-decoder models: OpenAI's API, LibreTranslate's, and Tandem's own.",
        routes=routes,
    )
    bodies = _bodies(limits)
    for path, item in found["paths"].items():
        for method, operation in item.items():
            operation["operationId"] = f"{method}_{path.strip('/').replace('/', '_') or 'root'}"
            operation["tags"] = [_tag(path)]
            if method == "post" and path in bodies:
                operation["requestBody"] = {"required": True, "content": bodies[path]}
            kind = "LibreTranslateError" if path.startswith(LIBRETRANSLATE) else "Error"
            operation["responses"] = {
                "200": operation["responses"]["200"],
                **{status: _refusal(text, kind) for status, text in _ERRORS.items()},
            }
    components = found.setdefault("components", {})
    components["schemas"] = {"Error": _ERROR, "LibreTranslateError": _object({"error": _TEXT}, "error")}
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    found["security"] = [{}, {"bearer": []}, {"header": []}]  # a server may have no keys
    return found


def _bodies(limits: Limits) -> dict[str, dict[str, Any]]:
    """The content of each path's body, by media type."""
    options = _properties(Options)
    generation = {**_properties(SamplingParams), **_properties(BeamSearchParams), **options}
    generation["seed"] = _properties(SamplingParams)["seed"]
    completion = {**generation, **_properties(CompletionBody)}
    completion |= {"prompt": _PROMPTS, "decoder_prompt": _PROMPTS}
    message = _object({"role": _TEXT, "content": {}}, "role", "content")
    chat = {**generation, **_properties(ChatBody), "messages": {"type": "array", "items": message}}
    embedding = {
        **{name: options[name] for name in options if name not in _properties(EmbeddingBody)},
        **_properties(EmbeddingBody),
        "input": _PROMPTS,
    }
    audio = {
        **{name: value for name, value in _properties(TranscriptionParams).items() if name not in _AUDIO},
        "file": _FILE,
        "model": options["model"],
        "priority": options["priority"],
        "timeout_s": options["timeout_s"],
        "response_format": {"enum": ["json", "text", "srt", "verbose_json", "vtt"], "default": "json"},
        "stream": {"type": "boolean", "default": False},
        "timestamp_granularities[]": {"type": "array", "items": {"enum": ["segment", "word"]}},
        "include[]": {"type": "array", "items": {"enum": ["logprobs"]}},
    }
    translate = {
        "q": {**_TEXTS, "description": f"Up to {limits.prompts} texts, of any length."},
        **_DIRECTION,
        "format": {"enum": ["text", "html"], "default": "text"},
        "alternatives": {"type": "integer", "default": 0},
        "stream": {"type": "boolean", "default": False, "description": "Of one text: events."},
        "split": {"enum": list(SPLITS), "default": "sentence"},
        "api_key": _TEXT,
    }
    key = {"api_key": _TEXT}
    translate_file = _object({"file": _FILE, **_DIRECTION, **key}, "file", "source", "target")
    heard = {_MULTIPART: {"schema": _object(audio, "file")}}
    example = {"prompt": "translate English to French: I am tired.", "max_tokens": 32}
    words = {"q": "I am tired.", "source": "en", "target": "fr"}
    return {
        "/v1/completions": _json(_object(completion, "prompt"), example),
        "/v1/chat/completions": _json(
            _object(chat, "messages"), {"messages": [{"role": "user", "content": "Where is the station?"}]}
        ),
        "/v1/embeddings": _json(_object(embedding, "input"), {"input": "I am tired."}),
        "/v1/audio/transcriptions": heard,
        "/v1/audio/translations": heard,
        "/translate": _either(_object(translate, "q", "source", "target"), words),
        "/translate_file": {_MULTIPART: {"schema": translate_file}},
        "/detect": _either(_object({"q": _TEXTS, **key}, "q"), {"q": "Je suis content."}),
        "/score": _json(
            {**_properties_of(ScoreBody, options), "required": ["prompt", "targets"]},
            {"prompt": "translate English to French: I am tired.", "targets": ["Je suis fatigué."]},
        ),
        "/tokenize": _json(_properties_of(TokenizeBody, {}), {"text": "I am tired."}),
        "/detokenize": _json(
            {**_properties_of(DetokenizeBody, {}), "required": ["tokens"]}, {"tokens": [5, 6]}
        ),
    }


def _properties(kind: type[BaseModel]) -> dict[str, Schema]:
    """A model's fields, each with the definitions that it names put in their places."""
    schema = kind.model_json_schema()
    definitions = schema.get("$defs", {})
    return {name: _resolved(value, definitions) for name, value in schema.get("properties", {}).items()}


def _resolved(value: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if isinstance(name := value.get("$ref"), str):
            return _resolved(definitions[name.rpartition("/")[2]], definitions)
        return {key: _resolved(one, definitions) for key, one in value.items()}
    if isinstance(value, list):
        return [_resolved(one, definitions) for one in value]
    return value


def _properties_of(kind: type[BaseModel], more: Mapping[str, Schema]) -> Schema:
    return _object({**more, **_properties(kind)})


def _object(properties: Mapping[str, Schema], *required: str) -> Schema:
    found: Schema = {"type": "object", "properties": dict(sorted(properties.items()))}
    return {**found, "required": list(required)} if required else found


def _json(schema: Schema, example: Mapping[str, Any]) -> dict[str, Any]:
    return {_JSON: {"schema": schema, "example": example}}


def _either(schema: Schema, example: Mapping[str, Any]) -> dict[str, Any]:
    """LibreTranslate's clients send forms as well."""
    return {**_json(schema, example), _FORM: {"schema": schema}, _MULTIPART: {"schema": schema}}


def _refusal(text: str, kind: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{kind}"}
    return {"description": text, "content": {_JSON: {"schema": schema}}}


def _tag(path: str) -> str:
    if path.startswith("/v1/"):
        return "OpenAI"
    return "LibreTranslate" if path.startswith(LIBRETRANSLATE) else "Tandem"


_ERROR: Final = _object(
    {
        "error": _object(
            {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"anyOf": [_TEXT, {"type": "null"}], "description": "The field at fault."},
                "code": _TEXT,
            },
            "message",
            "type",
        )
    },
    "error",
)
