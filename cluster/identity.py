"""What a router must have in common with the workers it uses."""

from __future__ import annotations

from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import SCHEMA
from tandem.workers.models.model_folder import resolve
from tandem.workers.requests.model_info import revision_of


def identity_of(config: ServeConfig) -> str:
    """The schema of what travels, the model's revision, the dtype and the device. While an application is
    updated, workers of the old model or version run along with new ones: mixed, they would answer wrongly.

    Reads some megabytes of the model's files. Raises ModelLoadError.
    """
    return f"{SCHEMA}/{revision_of(resolve(config.model))}/{config.dtype}/{config.device}"
