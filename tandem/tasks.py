"""The tasks a checkpoint declares: `task_specific_params` of its config.json, as T5's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import InvalidRequest
from tandem.workers.checkpoint import read_json


@dataclass(frozen=True)
class Task:
    """What a model wants to be told before its input, and how it wants to be decoded."""

    prefix: str = ""
    arguments: Mapping[str, Any] | None = None  # of transformers' `generate`


def tasks_of(folder: Path) -> dict[str, Task]:
    """The tasks by name: "summarization", "translation_en_to_fr", …"""
    declared = read_json(folder, "config.json").get("task_specific_params") or {}
    return {
        name: Task(
            str(settings.get("prefix") or ""), {key: settings[key] for key in settings if key != "prefix"}
        )
        for name, settings in declared.items()
    }


def translation(tasks: Mapping[str, Task], model: str, source: str, target: str) -> Task:
    """The task that translates from `source` to `target`, which are language codes.

    Raises InvalidRequest, listing what there is.
    """
    name = f"translation_{source}_to_{target}"
    if name not in tasks:
        known = ", ".join(task for task in tasks if task.startswith("translation_")) or "none"
        raise InvalidRequest(
            f"{model} declares no translation {source} to {target}; it has: {known}", field="tgt_lang"
        )
    return tasks[name]
