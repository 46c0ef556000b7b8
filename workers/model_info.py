"""What is known of a model before its weights are read: its ids, limits, decoding defaults, revision."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tandem.errors import ModelLoadError
from tandem.workers.families import family_of, first_id, spec_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationDefaults:
    """Decoding parameters of the model's own, for what a request leaves out.

    From `generation_config.json`, else `config.json`, else greedy. A sampling parameter that neither
    sets is off: transformers' implicit `top_k=50` is not copied.
    """

    temperature: float = 0.0  # 0: greedy, also where `do_sample` is false
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    max_length: int | None = None  # decoder start token and prompt included
    min_new_tokens: int = 0
    min_length: int = 0  # likewise


# What models set and SamplingParams cannot express yet, with the value that changes nothing.
_NOT_APPLIED: Final[Mapping[str, object]] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "bad_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "forced_decoder_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


@dataclass(frozen=True)
class ModelInfo:
    """A model as its clients and the validator see it. Made by `ModelInfo.read`."""

    name: str  # what requests call it
    family: str  # `model_type` of its config
    encoder_positions: int | None  # longest input of the position embeddings; None: any length
    decoder_positions: int | None
    # Rows of the embedding tables, which may exceed the tokenizer's vocabulary.
    encoder_vocab_size: int | None  # None: decoder-only, a prompt is the decoder's
    vocab_size: int  # of the decoder
    decoder_start_id: int | None  # None: decoder-only, the prompt is the start
    pad_id: int
    eos_ids: frozenset[int]
    defaults: GenerationDefaults
    task_prefixes: Mapping[str, str]  # text before the input, by task: "translation_en_to_fr", …
    revision: str  # changes with the model; part of every encoder key

    @classmethod
    def read(cls, folder: Path, name: str) -> ModelInfo:
        """Reads `config.json` and `generation_config.json`.

        Raises ModelLoadError for a model Tandem cannot serve and for a malformed file.
        """
        from tandem.workers.checkpoint import read_json  # brings torch

        config, generation = read_json(folder, "config.json"), read_json(folder, "generation_config.json")
        spec = spec_of(config)
        start = first_id("decoder_start_token_id", generation)
        start = spec.decoder_start_id if start is None else start
        if start is None and spec.encoder is not None:
            raise ModelLoadError(
                "is in neither config.json nor generation_config.json", field="decoder_start_token_id"
            )
        # A null in generation_config.json means "not set".
        defaults = {} if generation else family_of(config).defaults
        settings = {**defaults, **config, **{k: v for k, v in generation.items() if v is not None}}
        ignored = {k: settings[k] for k, off in _NOT_APPLIED.items() if settings.get(k) not in (None, off)}
        if ignored:
            logger.warning("%s: the model's own decoding defaults that are not applied: %s", name, ignored)
        return cls(
            name=name,
            family=spec.family,
            encoder_positions=None if spec.encoder is None else spec.encoder.max_positions,
            decoder_positions=spec.decoder.max_positions,
            encoder_vocab_size=None if spec.encoder is None else spec.encoder.vocab_size,
            vocab_size=spec.vocab_size,
            decoder_start_id=start if spec.encoder else None,
            pad_id=spec.pad_id,
            eos_ids=_ids(generation.get("eos_token_id"), "eos_token_id") or frozenset(spec.eos_ids),
            defaults=_defaults(settings),
            task_prefixes=_task_prefixes(config),
            revision=_revision(folder),
        )


def _defaults(settings: Mapping[str, Any]) -> GenerationDefaults:
    def number(key: str, default: float, high: float = math.inf, *, positive: bool = False) -> float:
        value = settings.get(key)
        if value is None:
            return default
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not 0 <= value <= high or (positive and value == 0):
            raise ModelLoadError(f"generation default {key} is out of range: {value!r}")
        return float(value)

    def count(key: str) -> int | None:
        return int(number(key, 0, positive=True)) if settings.get(key) is not None else None

    return GenerationDefaults(
        temperature=number("temperature", 1.0) if settings.get("do_sample") else 0.0,
        top_k=int(number("top_k", 0)),
        top_p=number("top_p", 1.0, 1.0, positive=True),
        min_p=number("min_p", 0.0, 1.0),
        repetition_penalty=number("repetition_penalty", 1.0, positive=True),
        max_new_tokens=count("max_new_tokens"),
        max_length=count("max_length"),
        min_new_tokens=int(number("min_new_tokens", 0)),
        min_length=int(number("min_length", 0)),
    )


def _ids(value: object, key: str) -> frozenset[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise ModelLoadError(f"{key} must be an id or a list of ids, got {value!r}")
    return frozenset(ids)


def _task_prefixes(config: Mapping[str, Any]) -> dict[str, str]:
    tasks = config.get("task_specific_params") or {}
    if not isinstance(tasks, dict):
        raise ModelLoadError("task_specific_params must be an object")
    return {
        task: settings["prefix"]
        for task, settings in tasks.items()
        if isinstance(settings, dict) and isinstance(settings.get("prefix"), str)
    }


def _revision(folder: Path) -> str:
    """The config and the names and sizes of the weight files, hashed: cheap, and equal on every node
    that holds the same checkpoint, where times of modification are not."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"\0{path.name}\0{path.stat().st_size}".encode())
    return digest.hexdigest()
