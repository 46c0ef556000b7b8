"""What LibreTranslate's clients send, read as LibreTranslate reads it, and refused in its words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from tandem.cluster.ingress.http.forms import Fields, FormFile
from tandem.errors import InvalidRequest
from tandem.limits import DEFAULT_LIMITS, Limits
from tandem.workers.requests.prompts.tokenizer import check_text
from tandem.workers.requests.segmentation.segments import SPLITS, Split

# LibreTranslate's clients and its web page send them; `edge/key_check.py` reads the key.
_OF_NO_EFFECT: Final = frozenset(["api_key", "secret"])
_MOST_ALTERNATIVES: Final = DEFAULT_LIMITS.n - 1


@dataclass(frozen=True, slots=True)
class Translation:
    """What `/translate` is asked for."""

    texts: list[str]
    several: bool  # whether they were a list, as the answer then is
    source: str
    target: str
    html: bool
    alternatives: int
    split: Split
    stream: bool  # as events


def translation(fields: Fields, limits: Limits) -> Translation:
    """Raises InvalidRequest."""
    values = fields.values
    _known(values, {"q", "source", "target", "format", "alternatives", "split", "stream"})
    q = _needed(values, "q", str, list)
    texts, several = _texts(q, fields.typed)
    if len(texts) > limits.prompts:
        raise InvalidRequest(f"Invalid request: request ({len(texts)}) exceeds text limit ({limits.prompts})")
    source, target = (_needed(values, name, str) for name in ("source", "target"))
    form = values.get("format") or "text"
    if form not in ("text", "html"):
        raise InvalidRequest(f"{form!s:.40} format is not supported")
    split = values.get("split") or "sentence"
    if split not in SPLITS:
        raise InvalidRequest(f"must be one of {', '.join(SPLITS)}, got {split!r:.40}", field="split")
    alternatives, stream = _alternatives(values.get("alternatives")), _flag(values.get("stream"), "stream")
    if stream and (several or form == "html" or alternatives):
        raise InvalidRequest("goes with one text, and with no alternatives", field="stream")
    return Translation(texts, several, source, target, form == "html", alternatives, split, stream)


def text_to_detect(fields: Fields) -> str:
    """`/detect`'s text, or all of several, which are taken to be in one language."""
    _known(fields.values, {"q"})
    return "\n".join(_texts(_needed(fields.values, "q", str, list), fields.typed)[0])


def file_to_translate(fields: Fields) -> tuple[FormFile, str, str]:
    """`/translate_file`'s file, source and target."""
    _known(fields.values, {"file", "source", "target"})
    file = _needed(fields.values, "file", FormFile)
    source, target = (_needed(fields.values, name, str) for name in ("source", "target"))
    if not file.name:
        raise InvalidRequest("Invalid request: empty file")
    return file, source, target


def _known(values: dict[str, Any], names: set[str]) -> None:
    for name in sorted(values.keys() - names - _OF_NO_EFFECT):
        raise InvalidRequest("unknown parameter", field=name)


def _needed(values: dict[str, Any], name: str, *kinds: type) -> Any:
    value = values.get(name)
    if value in (None, []) or (value == "" and name != "q"):  # a blank text has a blank translation
        raise InvalidRequest(f"Invalid request: missing {name} parameter")
    if not isinstance(value, kinds):
        wanted = " or ".join(
            {"str": "text", "list": "a list", "FormFile": "a file"}[k.__name__] for k in kinds
        )
        raise InvalidRequest(f"must be {wanted}", field=name)
    return value


def _texts(q: str | list[Any], typed: bool) -> tuple[list[str], bool]:
    """Texts, and whether there was a list of them. A form's text may be a JSON list, and has the line ends
    that browsers give it."""
    given = q if typed or isinstance(q, list) else _json_list(q)
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest("must be text, or a list of texts", field="q")
    for text in texts:
        check_text(text, "q")
    return texts if typed else list(map(_line_feeds, texts)), isinstance(given, list)


def _json_list(text: str) -> str | list[str]:
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return value
    return text


def _line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _flag(value: Any, field: str) -> bool:
    """True or false, or in a form their names."""
    found = {"true": True, "false": False, "none": False, "": False}.get(str(value).lower())
    if found is None:
        raise InvalidRequest(f"must be true or false, got {value!r:.40}", field=field)
    return found


def _alternatives(value: Any) -> int:
    """How many are asked for: a number, or in a form its digits."""
    whole = isinstance(value, float) and value.is_integer()
    try:
        count = int(value or 0) if whole or value is None or isinstance(value, int | str) else None
    except ValueError:
        count = None
    if count is None:
        raise InvalidRequest("Invalid request: alternatives parameter is not a number")
    if count > _MOST_ALTERNATIVES:
        raise InvalidRequest(f"Invalid request: alternatives parameter must be <= {_MOST_ALTERNATIVES}")
    return max(0, count)
