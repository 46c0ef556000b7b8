"""A model as it is known before its weights are read: its ids, limits, decoding defaults, revision."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import ModelLoadError
from tandem.inputs import Modality
from tandem.workers.models.families import family_of, first_id, spec_of
from tandem.workers.models.model_folder import read_json
from tandem.workers.models.spec import FrontSpec
from tandem.workers.requests.defaults import (
    GenerationDefaults,
    checked_overrides,
    ids_of,
    merged,
    not_applied,
)
from tandem.workers.requests.speech import Speech
from tandem.workers.requests.tasks import Task

logger = logging.getLogger(__name__)

# Samples of each weight file, evenly spread: 4 MiB in all, and the whole of a smaller file.
_SAMPLES = 256
_SAMPLE_BYTES = 2**14


@dataclass(frozen=True)
class ModelInfo:
    """A model as its clients and the validator see it. Made by `ModelInfo.read`."""

    name: str  # what requests call it
    family: str  # `model_type` of its config
    encoder_positions: int | None  # longest input of the position embeddings; None: any length
    decoder_positions: int | None
    decoder_only: bool  # a prompt is the decoder's
    # Rows of the embedding tables, which may exceed the tokenizer's vocabulary.
    encoder_vocab_size: int | None  # None: there is no encoder, or it reads media alone
    vocab_size: int  # the decoder's
    decoder_start_id: int | None  # None: decoder-only, the prompt is the start
    pad_id: int
    eos_ids: frozenset[int]
    defaults: GenerationDefaults
    tasks: Mapping[str, Task]  # by name
    revision: str  # changes with the model and its preprocessor; part of every encoder key
    front: FrontSpec | None = None  # how the encoder reads media; None: it reads text alone
    speech: Speech | None = None  # what the decoder of a speech model starts from
    encoder_width: int | None = None  # numbers of a hidden state; None: there is no encoder

    @classmethod
    def read(cls, folder: Path, name: str, overrides: Mapping[str, Any] | None = None) -> ModelInfo:
        """Reads `config.json` and `generation_config.json`; `overrides`, the server's, come before both.

        Raises ModelLoadError for a model Tandem cannot serve and for a malformed file, InvalidRequest for an
        override of an unknown name.
        """
        config, generation = read_json(folder, "config.json"), read_json(folder, "generation_config.json")
        spec = spec_of(config)
        start = first_id("decoder_start_token_id", generation)
        start = spec.decoder_start_id if start is None else start
        if start is None and spec.encoder is not None:
            raise ModelLoadError(
                "is in neither config.json nor generation_config.json", field="decoder_start_token_id"
            )
        # A null in config.json unsets a default of the family's; in generation_config.json it says nothing.
        own = {**({} if generation else family_of(config).defaults), **config}, generation
        server = checked_overrides(overrides or {})
        settings = merged(*own, server)
        front = None if spec.encoder is None else spec.encoder.front
        speech = None
        if front is not None and front.modality == "audio":
            speech = Speech.read(config, generation)
            settings.pop("forced_decoder_ids", None)
        if ignored := not_applied(settings):
            logger.warning("%s: the model's own decoding defaults that are not applied: %s", name, ignored)
        return cls(
            name=name,
            family=spec.family,
            encoder_positions=None if spec.encoder is None else spec.encoder.max_positions,
            decoder_positions=spec.decoder.max_positions,
            decoder_only=spec.encoder is None,
            encoder_vocab_size=None if spec.encoder is None else spec.encoder.vocab_size,
            vocab_size=spec.vocab_size,
            decoder_start_id=start if spec.encoder else None,
            pad_id=spec.pad_id,
            eos_ids=frozenset(ids_of(generation.get("eos_token_id"), "eos_token_id") or spec.eos_ids),
            defaults=GenerationDefaults.of(settings),
            tasks={
                task: Task(said, GenerationDefaults.of(merged(*own, said, server)))
                for task, said in _tasks(config).items()
            },
            revision=revision_of(folder),
            front=front,
            speech=speech,
            encoder_width=None if spec.encoder is None else spec.encoder.d_model,
        )

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the encoder reads besides text."""
        return frozenset() if self.front is None else frozenset([self.front.modality])


def _tasks(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tasks = config.get("task_specific_params") or {}
    if not isinstance(tasks, dict):
        raise ModelLoadError("task_specific_params must be an object")
    return {task: said for task, said in tasks.items() if isinstance(said, dict)}


def revision_of(folder: Path) -> str:
    """A hash of the configs and of samples from all over the weights. It is cheap, equal on every node that
    holds the same checkpoint, where times of modification are not, and differs for a model trained further,
    whose shapes are the same."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    if (preprocessor := folder / "preprocessor_config.json").is_file():  # how media become features
        digest.update(b"\0" + preprocessor.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
