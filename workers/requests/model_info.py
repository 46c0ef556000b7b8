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
from tandem.workers.models.families import spec_of
from tandem.workers.models.model_folder import read_config
from tandem.workers.models.spec import FrontSpec, ModelSpec
from tandem.workers.requests.parameters.defaults import GenerationDefaults, checked_overrides, merged
from tandem.workers.requests.parameters.generation_settings import (
    generation_config,
    not_applied,
    own_settings,
    sound,
)
from tandem.workers.requests.speech import Speech
from tandem.workers.requests.tasks import Task

logger = logging.getLogger(__name__)

# Samples of each weight file, evenly spread: 4 MiB in all, and the whole of a smaller file.
_SAMPLES = 256
_SAMPLE_BYTES = 2**14


@dataclass(frozen=True)
class ModelInfo:
    """A model as its clients and the validator see it. `ModelInfo.read` makes it."""

    name: str  # what requests call it
    family: str  # `model_type` of its config
    encoder_positions: int | None  # longest input of the position embeddings; None: any length
    decoder_positions: int | None
    decoder_only: bool  # a prompt is the decoder's
    # Rows of the embedding tables, which may exceed the tokenizer's vocabulary.
    encoder_vocab_size: int | None  # None: there is no encoder, or it reads media alone
    vocab_size: int  # the decoder's
    decoder_start_id: int | None  # None: the decoder starts from its prompt, which must be said
    pad_id: int
    eos_ids: frozenset[int]
    defaults: GenerationDefaults
    tasks: Mapping[str, Task]  # by name
    revision: str  # changes with the model and its preprocessor; part of every encoder key
    front: FrontSpec | None = None  # how the encoder reads media; None: it reads text alone
    speech: Speech | None = None  # what the decoder of a speech model starts from
    prompt_is_start: bool = False  # see `ModelSpec`
    encoder_width: int | None = None  # numbers of a hidden state; None: there is no encoder
    # Stands for an item of media in a decoder prompt, see `ModelSpec.media_token_id`. None: none does.
    media_token_id: int | None = None
    read_only_ids: int = 0  # ids from `vocab_size` on that prompts may hold

    @classmethod
    def read(cls, folder: Path, name: str, overrides: Mapping[str, Any] | None = None) -> ModelInfo:
        """Reads `config.json` and `generation_config.json`; `overrides`, the server's, come before both.

        What the files ask for and does not happen, because it is not there or malformed, is warned of.

        Raises ModelLoadError for a model Tandem cannot serve, InvalidRequest for an override of an unknown
        name or a malformed value.
        """
        config, generation = read_config(folder), generation_config(folder)
        spec = spec_of(config)
        settings = own_settings(config, generation)
        own, malformed = sound(settings, spec.vocab_size)
        front = None if spec.encoder is None else spec.encoder.front
        speech = None
        if front is not None and front.modality == "audio":
            speech = Speech.read(config, generation or {})
            settings.pop("forced_decoder_ids", None)
        server = checked_overrides(overrides or {}, spec.vocab_size)
        defaults = GenerationDefaults.of(merged(own, server))
        ignored = not_applied(settings)
        tasks = {}
        for task, said in _tasks(config).items():
            good, bad = sound(said, spec.vocab_size)
            tasks[task] = Task(said, GenerationDefaults.of(merged(own, good, server)))
            malformed |= {f"{task}.{setting}": why for setting, why in bad.items()}
            ignored |= {f"{task}.{setting}": value for setting, value in not_applied(said).items()}
        if ignored:
            logger.warning("%s: the model's own decoding defaults that are not applied: %s", name, ignored)
        if malformed:
            logger.warning("%s: the model's own decoding defaults that are malformed: %s", name, malformed)
        return cls(
            name=name,
            family=spec.family,
            encoder_positions=None if spec.encoder is None else spec.encoder.max_positions,
            decoder_positions=spec.decoder.max_positions,
            decoder_only=spec.encoder is None,
            encoder_vocab_size=None if spec.encoder is None else spec.encoder.vocab_size,
            vocab_size=spec.vocab_size,
            decoder_start_id=_start(own, generation, spec),
            pad_id=spec.pad_id,
            eos_ids=_ends(own, generation, spec),
            defaults=defaults,
            tasks=tasks,
            revision=revision_of(folder),
            front=front,
            speech=speech,
            prompt_is_start=spec.prompt_is_start,
            encoder_width=None if spec.encoder is None else spec.encoder.d_model,
            media_token_id=spec.media_token_id,
            read_only_ids=spec.read_only_ids,
        )

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the encoder reads besides text."""
        return frozenset() if self.front is None else frozenset([self.front.modality])


def _start(own: Mapping[str, Any], generation: Mapping[str, Any] | None, spec: ModelSpec) -> int | None:
    """What the decoder starts from; None: from its prompt. transformers takes BOS where
    `generation_config.json` has no start; where it has neither, it refuses the model, and config.json's is
    taken here. Raises ModelLoadError."""
    if spec.encoder is None or spec.media_token_id is not None:
        return None
    start: int | None = own.get("decoder_start_token_id")
    if start is None and generation is not None:
        start = own.get("bos_token_id")
    start = spec.decoder_start_id if start is None else start
    if start is None:
        raise ModelLoadError(
            "is in neither config.json nor generation_config.json: set it there (a decoder like BERT's "
            "starts with the tokenizer's cls_token_id)",
            field="decoder_start_token_id",
        )
    return start


def _ends(own: Mapping[str, Any], generation: Mapping[str, Any] | None, spec: ModelSpec) -> frozenset[int]:
    """The ids that end an answer: those of `generation_config.json`, where null says that there are none. A
    file that does not speak of them leaves them to config.json; in transformers its answers would not end."""
    says_none = generation is not None and generation.get("eos_token_id", spec) is None
    return frozenset(own.get("eos_token_id", () if says_none else spec.eos_ids))


def _tasks(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    tasks = config.get("task_specific_params")
    return (
        {task: said for task, said in tasks.items() if isinstance(said, dict)}
        if isinstance(tasks, dict)
        else {}
    )


def revision_of(folder: Path) -> str:
    """A hash of the configs and of samples from all over the weights. It is cheap, equal on every node that
    holds the same checkpoint, where times of modification are not, and differs for a model trained further,
    whose shapes are the same."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    for name in ("preprocessor_config.json", "processor_config.json"):  # how media become features
        if (processor := folder / name).is_file():
            digest.update(b"\0" + processor.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
