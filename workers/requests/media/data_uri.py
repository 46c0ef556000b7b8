"""Images as chats have them: `data:` URIs with a file in base64."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from tandem.errors import InvalidRequest, RequestTooLarge

_SHAPE: Final = "data:image/png;base64,…"
_LONGEST_HEAD: Final = 256  # characters before the comma
# Characters that are decoded at a time, whole groups of four: other threads run between two slices.
_SLICE: Final = 2**20


def file_of(uri: str, field: str, most_bytes: int) -> bytes:
    """The file in a URI. Raises InvalidRequest and RequestTooLarge, naming the field.

    Addresses are refused: a server that fetches what a client names can be made to reach places that the
    client cannot.
    """
    head, comma, _ = uri[:_LONGEST_HEAD].partition(",")
    kind = head.lower()
    if kind.startswith(("http:", "https:")):
        raise InvalidRequest(
            f"is an address, and this server fetches none: send the image itself, as {_SHAPE}", field=field
        )
    if not comma or not kind.startswith("data:") or not kind.endswith(";base64"):
        raise InvalidRequest(f"must be an image's file in base64, as {_SHAPE}", field=field)
    text = uri[len(head) + 1 :]
    if any(space in text for space in "\n\r\t "):  # as tools write it that break lines
        text = "".join(text.split())
    if (size := len(text) // 4 * 3 - text.count("=", -2)) > most_bytes:
        raise RequestTooLarge(f"has {size} bytes, the limit is {most_bytes}", field=field)
    try:
        parts = [
            base64.b64decode(text[at : at + _SLICE], validate=True) for at in range(0, len(text), _SLICE)
        ]
    except (binascii.Error, ValueError) as error:  # the latter for what is not ASCII
        raise InvalidRequest(f"is no base64: {error}", field=field) from None
    if any(len(part) != _SLICE // 4 * 3 for part in parts[:-1]):
        raise InvalidRequest("is no base64: it is padded before its end", field=field)
    if not text:
        raise InvalidRequest("has no bytes", field=field)
    return b"".join(parts)


def bytes_besides(body: bytes) -> int:
    """How many bytes of JSON are in no string that begins as a `data:` URI does."""
    beside, at = len(body), 0
    while (at := body.find(b'"data:', at)) >= 0:
        end = body.find(b'"', at + 1)
        if end < 0:
            break
        beside -= end - at
        at = end
    return beside
