"""Images in a batch: lines that name or hold them, each with a prompt of its own or the run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from tandem.batch import media_columns, records
from tandem.inputs import Prompt, RequestOptions
from tandem.params import Params

_PROMPT = "prompt"


def without_prompt(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A run's decoding parameters and options."""
    return {name: value for name, value in defaults.items() if name != _PROMPT}


def carried(values: Mapping[str, Any], column: str) -> dict[str, Any]:
    """See `records.carried`; the images are no part of it."""
    return records.carried({name: value for name, value in values.items() if name != column})


def request(
    values: Mapping[str, Any], column: str, defaults: Mapping[str, Any]
) -> tuple[Prompt, Params | None, RequestOptions]:
    """What a line asks about its images, see `records.request`; where it has no prompt, the run's, or an
    empty one. Raises InvalidRequest, naming the field."""
    asked = {name: value for name, value in values.items() if name != column}
    if not any(name in asked for name in records.PROMPTS):
        asked[_PROMPT] = defaults.get(_PROMPT, "")
    return records.request(asked, without_prompt(defaults))


def read(values: Mapping[str, Any], column: str, folder: Path) -> list[bytes]:
    """A line's image, or its list of them: see `media_columns.read`."""
    value = values.get(column)
    if not isinstance(value, list):
        return [media_columns.read(value, column, folder)]
    return [media_columns.read(one, f"{column}.{number}", folder) for number, one in enumerate(value)]


def about(prompt: Any, images: list[bytes]) -> Prompt:
    """A line's prompt with its images."""
    media = {"multi_modal_data": {"image": images}}
    if "encoder_prompt" not in prompt:
        return cast(Prompt, {**prompt, **media})
    encoder = prompt["encoder_prompt"]
    encoder = {_PROMPT: encoder} if isinstance(encoder, str) else encoder
    return cast(Prompt, {**prompt, "encoder_prompt": {**encoder, **media}})
