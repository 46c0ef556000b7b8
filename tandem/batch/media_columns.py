"""The member of lines, or column of tables, that names or holds their recordings or images."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tandem.errors import InvalidRequest
from tandem.inputs import Modality
from tandem.media import file_bytes


class MediaColumn(NamedTuple):
    """Lines that stand for files by themselves call it as the modality."""

    modality: Modality
    name: str


def place(values: Mapping[str, Any], column: str) -> dict[str, str]:
    """The line's member that says where its file is, for its answer to have; none where nothing does."""
    value = values.get(column)
    path = value.get("path") if isinstance(value, Mapping) else value
    return {column: path} if isinstance(path, str) else {}


def read(value: Any, field: str, folder: Path) -> bytes:
    """A line's file: a path, from `folder` on where it is relative, or an object with the file as "bytes", in
    base64, or with its "path", as data sets have them. Raises InvalidRequest."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, value)
    if isinstance(data, str):
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise InvalidRequest(f"is no base64: {error}", field=f"{field}.bytes") from None
    if isinstance(path, str):
        return file_bytes(folder / path, field)
    raise InvalidRequest('must be a path, or have "bytes" or a "path"', field=field)


def encoded(value: Any) -> Any:
    """A table's value as JSON has it: bytes, by themselves or as a member of an object, in base64."""
    if isinstance(value, bytes):
        return {"bytes": _text(value)}
    if isinstance(value, dict):
        return {name: _text(one) if isinstance(one, bytes) else one for name, one in value.items()}
    if isinstance(value, list):
        return [encoded(one) for one in value]
    return value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
