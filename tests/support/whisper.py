"""Tiny random Whisper checkpoints, laid out as the published ones are, audio for them, and transformers'
answers."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from models import Variant, words
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

TOKENS = 24
CLEAR = 1e-3  # lead of each token's logit: below it rounding decides
RATE = 16_000  # samples a second
WORDS = 90
EOS, SOT, TRANSLATE, TRANSCRIBE, NO_TIMESTAMPS = (
    WORDS, WORDS + 1, WORDS + 5, WORDS + 6, WORDS + 10,
)  # fmt: skip
LANGUAGES = {"en": SOT + 1, "fr": SOT + 2, "de": SOT + 3}
SPECIAL = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|fr|>", "<|de|>", "<|translate|>", "<|transcribe|>",
    "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
]  # fmt: skip
SUPPRESSED = [3, 7]
BEGIN_SUPPRESSED = [5, EOS]


@dataclass(frozen=True)
class Geometry:
    """How one size differs from the others."""

    options: dict[str, Any] = field(default_factory=dict)  # of the config
    generation: dict[str, Any] = field(default_factory=dict)  # of generation_config.json
    seconds: int = 1  # audio that the encoder takes; 50 positions each
    eos_gain: float = 1.6


_FORCED = {"forced_decoder_ids": [[1, None], [2, TRANSCRIBE]]}
GEOMETRIES = {
    "base": Geometry(generation=_FORCED),
    # large-v3: 128 mel bins, and nothing said of language and task
    "large": Geometry(
        {"num_mel_bins": 128, "encoder_attention_heads": 4, "encoder_layers": 3, "decoder_attention_heads": 2}
    ),
    "turbo": Geometry(
        {"encoder_layers": 4, "decoder_layers": 1, "scale_embedding": True}, seconds=2, eos_gain=4.0
    ),
    "english": Geometry(
        generation={
            "is_multilingual": False, "lang_to_id": None, "task_to_id": None,
            "forced_decoder_ids": [[1, NO_TIMESTAMPS]],
        },
        eos_gain=0.9,
    ),
}  # fmt: skip


def make_whisper(
    folder: Path, geometry: str, seed: int = 0, *, times: bool = False, **overrides: Any
) -> Path:
    """Writes a checkpoint with tokenizer and feature extractor into `folder` and returns it.

    times: it may say them, and its answers are short. `overrides` are of its config.
    """
    kind = GEOMETRIES[geometry]
    positions = 50 * kind.seconds
    size = WORDS + len(SPECIAL) + positions + 1  # the last are timestamps, 0.02 s apart
    options = {
        "vocab_size": size, "num_mel_bins": 80, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 64, "max_source_positions": positions, "max_target_positions": 64,
        "pad_token_id": EOS, "bos_token_id": EOS, "eos_token_id": EOS, "decoder_start_token_id": SOT,
        "begin_suppress_tokens": None,
    }  # fmt: skip
    variant = Variant("Whisper", True, options, kind.eos_gain)
    model = variant.make(**kind.options, **overrides)
    models.fill(model, variant, seed, eos=EOS)
    generation = {
        "decoder_start_token_id": SOT, "eos_token_id": EOS, "pad_token_id": EOS, "bos_token_id": EOS,
        "max_length": 26 if times else 64,
        # A random model would emit timestamps, which make transformers move its window.
        "suppress_tokens": [*SUPPRESSED, *range(SOT, NO_TIMESTAMPS if times else size)],
        "begin_suppress_tokens": BEGIN_SUPPRESSED,
        "is_multilingual": True, "lang_to_id": {f"<|{code}|>": i for code, i in LANGUAGES.items()},
        "task_to_id": {"translate": TRANSLATE, "transcribe": TRANSCRIBE}, "return_timestamps": False,
        "no_timestamps_token_id": NO_TIMESTAMPS, "prev_sot_token_id": SOT + 7,
        "max_initial_timestamp_index": 8,
    } | kind.generation  # fmt: skip
    model.generation_config = GenerationConfig(
        **{name: value for name, value in generation.items() if value is not None}
    )
    model.save_pretrained(folder)
    _tokenizer(size).save_pretrained(folder)
    mels = model.config.num_mel_bins
    WhisperFeatureExtractor(feature_size=mels, chunk_length=kind.seconds).save_pretrained(folder)
    return folder


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    plain = list(itertools.islice(words(), WORDS - 1))
    stamps = [f"<|{0.02 * n:.2f}|>" for n in range(size - WORDS - len(SPECIAL))]
    vocabulary = {word: at for at, word in enumerate(["<unk>", *plain, *SPECIAL, *stamps])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0], unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return fast


def sound(seed: int, seconds: float = 0.7) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Chirps and noise, float32 [samples] at RATE: another spectrogram for every seed."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tones = [
        rng.uniform(0.05, 0.3)
        * np.sin(2 * np.pi * (rng.uniform(80, 3000) * time + rng.uniform(-2e3, 2e3) * time**2))
        for _ in range(4)
    ]
    gate = np.repeat(rng.random(int(seconds * 20) + 1) > 0.3, RATE // 20)[: len(time)]
    return ((sum(tones) * gate + 0.01 * rng.standard_normal(len(time))) / 2).astype(np.float32)


class Reference:
    """transformers with one checkpoint, one request at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
        self.config = json.loads((folder / "generation_config.json").read_text())

    def features(self, samples: np.ndarray[Any, Any]) -> torch.Tensor:
        """[1, mel bins, frames]."""
        features: torch.Tensor = self.extractor(
            samples, sampling_rate=RATE, return_tensors="pt"
        ).input_features
        return features

    @torch.no_grad()
    def generate(self, samples: np.ndarray[Any, Any], **options: Any) -> list[int]:
        """The generated ids, without what the decoder started from and without EOS."""
        self.model.generation_config.max_length = None  # else a warning of `max_new_tokens` a call
        out = self.model.generate(self.features(samples), **options)
        ids: list[int] = out[0].tolist()
        return ids

    @property
    def multilingual(self) -> bool:
        return "lang_to_id" in self.config

    def opening(self, options: dict[str, str]) -> list[int]:
        """What the decoder starts from, a language that is not said being the first there is."""
        generation = copy.deepcopy(self.model.generation_config)
        self.model._set_language_and_task(options.get("language"), options.get("task"), None, generation)
        with pytest.MonkeyPatch.context() as patch:
            first = next(iter(self.config.get("lang_to_id", {None: 0}).values()))
            patch.setattr(self.model, "detect_language", lambda **_: torch.tensor([first]))
            ids: list[int] = self.model._retrieve_init_tokens(None, 1, generation, self.model.config, 1, {})[
                0
            ].tolist()
        return ids

    @torch.no_grad()
    def lead(self, samples: np.ndarray[Any, Any], ids: list[int], **options: str) -> float:
        """The smallest lead of an answer's tokens over the next likeliest, in logits, language included."""
        features = self.features(samples)
        prefix = self.opening(options)
        lead = torch.inf
        if self.multilingual and "language" not in options:
            languages = list(self.config["lang_to_id"].values())
            logits = self.model(features, decoder_input_ids=torch.tensor([[prefix[0]]])).logits[
                0, 0, languages
            ]
            prefix[1] = languages[int(logits.argmax())]
            lead = float(-logits.topk(2).values.diff())
        logits = self.model(features, decoder_input_ids=torch.tensor([[*prefix, *ids]])).logits[
            0, len(prefix) - 1 :
        ]
        logits[:, self.config["suppress_tokens"]] = -torch.inf
        logits[0, self.config["begin_suppress_tokens"]] = -torch.inf
        return min(lead, float(-logits.topk(2).values.diff().max()))


def theirs(asked: dict[str, str]) -> dict[str, str]:
    names = {"source_language": "language", "task": "task"}
    return {names[name]: value for name, value in asked.items()}


def cases(
    reference: Reference, asked: dict[str, str], count: int, *, tokens: int = TOKENS, first: int = 0
) -> list[tuple[np.ndarray[Any, Any], list[int]]]:
    """Sounds whose answers are clear, and transformers' answers."""
    found = []
    for seed in range(first, first + 200):
        samples = sound(seed)
        ids = reference.generate(samples, max_new_tokens=tokens, **theirs(asked))
        if reference.lead(samples, ids, **theirs(asked)) > CLEAR:
            found.append((samples, ids))
        if len(found) == count:
            return found
    raise AssertionError("no clear answers")


def text_ids(ids: list[int], opening: int) -> list[int]:
    """Without the opening that the model said, and without EOS."""
    return [token for token in ids[opening:] if token != EOS]


def said(reference: Reference, asked: dict[str, str]) -> int:
    """How many generated tokens come before the text: those after a language that the model is to say."""
    if not reference.multilingual or "source_language" in asked:
        return 0
    return len(reference.opening(theirs(asked))) - 1


def audio(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = (value, RATE)
    return {"prompt": "", "multi_modal_data": {"audio": value}}
