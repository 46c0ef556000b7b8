"""Requests and answers as lines of JSON: what `--jsonl` prints and `tandem batch` reads and writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tandem.errors import InvalidRequest
from tandem.outputs import RequestOutput
from tandem.params import SamplingParams


def params_of(values: Mapping[str, Any]) -> SamplingParams:
    """Decoding parameters by name. Raises InvalidRequest, naming the one at fault."""
    return SamplingParams(**values)


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """`name=value` → values by name. A value is JSON; what is not, is text."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"expected NAME=VALUE, got {text!r}", field="param")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def answer(output: RequestOutput) -> dict[str, Any]:
    """The answer's part of a line."""
    return {
        "outputs": [
            {"text": sample.text, "finish_reason": sample.finish_reason, "tokens": len(sample.token_ids)}
            for sample in output.outputs
        ]
    }


def line(values: Mapping[str, Any]) -> str:
    """One line, with its end."""
    return json.dumps(values, ensure_ascii=False) + "\n"
