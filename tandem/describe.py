"""All that is known of a model before it runs, as plain values: what `tandem show` shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tandem.workers.config import EngineConfig
from tandem.workers.models.families import family_of, spec_of
from tandem.workers.models.footprint import Footprint
from tandem.workers.models.model_folder import read_json, resolve
from tandem.workers.requests.model_info import ModelInfo

# A default's names in the files, where they are not its own.
_CALLED: Final = {"temperature": ("do_sample", "temperature")}
_BUILT_IN: Final = "Tandem"


def describe(
    model: str,
    sequence: tuple[int, int],
    overrides: Mapping[str, Any] | None = None,
    **engine_options: Any,
) -> dict[str, Any]:
    """The model's spec, decoding defaults, tasks and memory, ready for JSON.

    Args:
        model: a folder, a Hugging Face hub id, or "quickstart".
        sequence: input and output tokens of the sequences that are fitted into the K/V memory.
        overrides: a server's own decoding defaults, under transformers' names.
        engine_options: fields of `EngineConfig`, such as dtype or kv_cache_gib.

    Raises ModelLoadError for a model that cannot be served, InvalidRequest for an unusable option.
    """
    folder = resolve(model)
    config = EngineConfig.of(model=str(folder), **engine_options)
    info = ModelInfo.read(folder, model, overrides)
    spec = spec_of(read_json(folder, "config.json"))
    footprint = Footprint.of(config)
    inputs, outputs = sequence
    return {
        "model": model,
        "family": info.family,
        "revision": info.revision,
        "spec": dataclasses.asdict(spec),
        "defaults": _defaults(folder, info, overrides or {}),
        "tasks": {name: dict(task.settings) for name, task in info.tasks.items()},
        "memory": {
            **dataclasses.asdict(footprint),
            "kv_cache": footprint.kv_cache,
            "fits": {
                "input_tokens": inputs,
                "output_tokens": outputs,
                "sequences": footprint.sequences(inputs, outputs),
            },
        },
    }


def _defaults(folder: Path, info: ModelInfo, overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each decoding default and who sets it."""
    generation, config = (read_json(folder, name) for name in ("generation_config.json", "config.json"))
    layers: dict[str, Mapping[str, Any]] = {
        "server": overrides,
        "generation_config.json": generation,
        "config.json": config,
        # transformers' classes have defaults of their own, for a model without generation_config.json.
        f"family {info.family}": {} if generation else family_of(config).defaults,
    }

    def source(name: str) -> str:
        keys = _CALLED.get(name, (name,))
        return next(
            (who for who, values in layers.items() if any(values.get(key) is not None for key in keys)),
            _BUILT_IN,
        )

    return {
        field.name: {"value": getattr(info.defaults, field.name), "from": source(field.name)}
        for field in dataclasses.fields(info.defaults)
    }
