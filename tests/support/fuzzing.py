"""Requests that nobody would send, made of ones that somebody would and of what `/openapi.json` says of each
route: the same ones for the same seed."""

from __future__ import annotations

import copy
import json
import random
from typing import Any, Final
from urllib.parse import quote, urlencode

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tandem.params import BeamSearchParams, SamplingParams
from tandem.transcription import TranscriptionParams

_NAMES: Final = sorted(
    {
        *SamplingParams.model_fields, *BeamSearchParams.model_fields, *TranscriptionParams.model_fields,
        "prompt", "model", "stream", "stream_options", "echo", "suffix", "best_of", "user", "messages",
        "tools", "response_format", "input", "encoding_format", "dimensions", "priority", "timeout_s",
        "request_id", "source_language", "target_language", "task", "q", "source", "target", "format",
        "alternatives", "split", "text", "tokens", "token_ids", "targets", "pooling", "normalize", "file",
        "truncate_prompt_tokens",
    }
)  # fmt: skip
_PATHS: Final[dict[str, dict[str, Any]]] = {
    "/v1/completions": {"model": "tiny", "prompt": "the cat", "max_tokens": 4, "n": 2, "temperature": 0.5},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "the cat"}]},
    "/v1/embeddings": {"model": "tiny", "input": ["the cat", "the mat"]},
    "/score": {"model": "tiny", "text_1": "the cat", "text_2": ["le chat"], "prompt": "x", "targets": ["y"]},
    "/tokenize": {"model": "tiny", "prompt": "the cat", "add_special_tokens": True},
    "/detokenize": {"model": "tiny", "tokens": [1, 2, 3]},
    "/translate": {"q": "the cat", "source": "en", "target": "fr", "format": "html", "alternatives": 1},
    "/suggest": {"q": "the cat", "s": "le chat", "source": "en", "target": "fr"},
}
_FORMS: Final = {
    "/translate": {"q": "the cat", "source": "en", "target": "fr"},
    "/translate_file": {"file": "the cat", "source": "en", "target": "fr"},
    "/v1/audio/transcriptions": {"file": "RIFF", "model": "tiny", "language": "en", "response_format": "srt"},
    "/v1/audio/translations": {"file": "RIFF", "model": "tiny"},
}
_UNDESCRIBED: Final = ("/", "/docs", "/-/routes", "/v1", "/nothing")
_METHODS: Final = ("GET", "HEAD", "PUT", "OPTIONS", "POST")
_ENDS: Final = ("", "/", "//", ";x", "%2f", "%00", "/%ff", "?a=%ff", "?api_key=x", "/..;/")
_TYPES: Final = (b"text/plain", b"application/json", b"\xff", b"a/b;c=")
_HEADERS: Final = (
    b"x-request-id", b"serve_multiplexed_model_id", b"x-session-id", b"accept", b"x-api-key", b"traceparent",
)  # fmt: skip
_SCALARS: Final = (None, True, -1, 0, 1, 3, 2**31, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"))
_TEXTS: Final = ("", "a", "the cat", "\0", "\ud800", "é" * 50, "a " * 2000, "null", "-1", "[1]", "\u202e")
_BOUNDARY: Final = "b"
_JSON, _MULTIPART, _FORM = "application/json", "multipart/form-data", "application/x-www-form-urlencoded"
_DEPTH: Final = 6  # of what a schema describes; deeper is junk


class Fuzz:
    def __init__(self, seed: int, described: dict[str, Any]) -> None:
        """`described`: the server's OpenAPI document, for HTTP."""
        self._draw = random.Random(seed)
        self._operations = [
            (path, method.upper(), operation)
            for path, item in described.get("paths", {}).items()
            for method, operation in item.items()
        ]

    def http(self) -> bytes:
        """One request of HTTP/1.1, well enough formed that its connection goes on, or the last of one."""
        draw = self._draw
        kind = draw.random()
        headers: list[bytes] = []
        method, body = "POST", b""
        if kind < 0.3:
            path = draw.choice(list(_PATHS))
            value: Any = copy.deepcopy(_PATHS[path])
            for _ in range(draw.randint(1, 3)):
                value = self._mutated(value)
            body, media = self._encoded(value), _JSON
        elif kind < 0.4:
            path = draw.choice(list(_FORMS))
            body, media = self._form(dict(_FORMS[path])), _MULTIPART
        else:
            path, method, operation = draw.choice(self._operations)
            path = self._place(path, operation)
            content = operation.get("requestBody", {}).get("content", {})
            media = draw.choice(list(content)) if content else ""
            if content:
                value = self._of(content[media]["schema"])
                if media == _JSON or not isinstance(value, dict):
                    body = self._encoded(value)
                elif media == _FORM:
                    body = urlencode(
                        [(str(key), str(one)) for key, one in value.items()], errors="replace"
                    ).encode()
                else:
                    body = self._form(value)
            if draw.random() < 0.2:
                path = draw.choice([path, *_UNDESCRIBED]) + draw.choice(_ENDS)
                method = draw.choice(_METHODS)
        if media:
            boundary = f"; boundary={_BOUNDARY}" if media == _MULTIPART else ""
            headers.append(f"content-type: {media}{boundary}".encode())
        if draw.random() < 0.1:
            body = self._bytes(body)
        if draw.random() < 0.1:
            headers = [b"content-type: " + draw.choice(_TYPES)]
        if draw.random() < 0.3:
            noise = draw.randbytes(draw.randint(0, 200)).translate(None, b"\r\n\0")
            headers.append(draw.choice(_HEADERS) + b": " + noise)
        if method == "POST" or body:
            headers.append(b"content-length: " + str(len(body)).encode())
        line = f"{method} {quote(path, safe='/%?=;.&')} HTTP/1.1".encode()
        return b"\r\n".join([line, b"host: x", *headers, b"", body])

    def message(self, message: Message) -> bytes:
        """A message of this type, at times with other bytes in it."""
        self._fill(message, 0)
        data = message.SerializeToString()
        return self._bytes(data) if self._draw.random() < 0.4 else data

    # --- Within ---

    def _encoded(self, value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=self._draw.random() < 0.5).encode(errors="surrogatepass")

    def _place(self, path: str, operation: dict[str, Any]) -> str:
        """A path with its parameters, those of the query among them."""
        query = []
        for parameter in operation.get("parameters", ()):
            value = self._of(parameter["schema"])
            text = quote(str(value)[:100], safe="", errors="replace")
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", text or "x")
            elif parameter["in"] == "query" and self._draw.random() < 0.7:
                query.append(f"{parameter['name']}={text}")
        return f"{path}?{'&'.join(query)}" if query else path

    def _of(self, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value that a schema allows, but for what is junk in it."""
        draw = self._draw
        if depth > _DEPTH or draw.random() < 0.04:
            return self._junk(depth)
        if "enum" in schema:
            return draw.choice(schema["enum"])
        for either in ("anyOf", "oneOf"):
            if either in schema:
                return self._of(draw.choice(schema[either]), depth + 1)
        match schema.get("type"):
            case "object":
                properties, needed = schema.get("properties", {}), schema.get("required", ())
                chosen = [
                    name for name in properties if name in needed or draw.random() < 3 / len(properties)
                ]
                return {name: self._of(properties[name], depth + 1) for name in chosen}
            case "array":
                least = schema.get("minItems", 0)
                count = draw.randint(least, least + 3)
                return [self._of(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "string":
                return draw.choice(_TEXTS)
            case "boolean":
                return draw.random() < 0.5
            case "null":
                return None
            case "integer" | "number" as kind:
                low, high = schema.get("minimum", 0), schema.get("maximum", 8)
                return draw.choice(
                    [low, low - 1, high, high + 1, 1, 3] + ([0.5, 1.0] if kind == "number" else [])
                )
        return self._junk(depth)

    def _junk(self, depth: int = 0) -> Any:
        draw = self._draw
        kind = draw.randrange(12)
        if kind < 5:
            return draw.choice(_SCALARS)
        if kind < 8:
            return draw.choice(_TEXTS)
        if kind < 10 and depth < 5:
            return [self._junk(depth + 1) for _ in range(draw.randrange(5))]
        if kind < 11 and depth < 5:
            return {draw.choice(_NAMES): self._junk(depth + 1) for _ in range(draw.randrange(5))}
        nested: Any = 1
        for _ in range(draw.choice([3, 60])):
            nested = [nested]
        return nested

    def _mutated(self, value: Any) -> Any:
        draw = self._draw
        if not value or draw.random() < 0.05:
            return self._junk()
        if isinstance(value, dict):
            key = draw.choice(list(value))
            match draw.randrange(4):
                case 0:
                    return {**value, draw.choice(_NAMES): self._junk()}
                case 1:
                    return {name: one for name, one in value.items() if name != key}
                case _:
                    return {**value, key: self._mutated(value[key])}
        if isinstance(value, list):
            place = draw.randrange(len(value))
            return [*value[:place], self._mutated(value[place]), *value[place + draw.randrange(2) :]]
        return self._junk()

    def _form(self, values: dict[str, Any]) -> bytes:
        draw = self._draw
        if draw.random() < 0.7:
            name = draw.choice([*values, draw.choice(_NAMES)])
            values[name] = str(self._junk())
        parts = []
        for name, value in values.items():
            file = '; filename="a.' + draw.choice(["txt", "srt", "html", "docx", "wav", "", "x"]) + '"'
            head = f'content-disposition: form-data; name="{name}"{file if name == "file" else ""}\r\n\r\n'
            parts.append(f"--{_BOUNDARY}\r\n{head}{value}\r\n")
        return "".join([*parts, f"--{_BOUNDARY}--\r\n"]).encode(errors="surrogatepass")

    def _bytes(self, data: bytes) -> bytes:
        draw = self._draw
        place = draw.randint(0, len(data))
        match draw.randrange(4):
            case 0:
                return data[:place]
            case 1:
                return data[:place] + draw.randbytes(draw.randint(1, 9)) + data[place:]
            case 2:
                return data[:place] + draw.randbytes(1) + data[place + 1 :]
            case _:
                return draw.randbytes(draw.randint(0, 40))

    def _fill(self, message: Message, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._draw.random() > (0.5 if depth == 0 else 0.15):
                continue
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                kind = field.message_type
                assert kind is not None
                if kind.GetOptions().map_entry or depth > 4:
                    continue
                inner = getattr(message, field.name)
                self._fill(inner.add() if field.is_repeated else inner, depth + 1)
                if not field.is_repeated:
                    inner.SetInParent()
            elif field.is_repeated:
                values = [self._scalar(field) for _ in range(self._draw.randrange(4))]
                getattr(message, field.name).extend(values)
            else:
                setattr(message, field.name, self._scalar(field))

    def _scalar(self, field: Any) -> Any:  # a FieldDescriptor, of either implementation
        draw, kind = self._draw, field.cpp_type
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return draw.randbytes(draw.choice([0, 3, 300]))
            return draw.choice(["", "a", "tiny", "the cat", "\0", "é" * 50, "x" * 3000, "en", "\u202e"])
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return draw.random() < 0.5
        if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
            return draw.choice([0.0, 0.5, 1.0, -1.0, 1e30, float("nan"), float("inf"), -float("inf")])
        if kind == FieldDescriptor.CPPTYPE_ENUM:
            return draw.choice([0, 1, 2, 77])
        low = 0 if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64) else -(2**31)
        return draw.choice([0, 1, 2, 5, 64, 10_000, 2**31 - 1, low])
