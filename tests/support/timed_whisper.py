"""Tiny Whisper checkpoints whose answers are words of bytes: with and without spaces, punctuation, digits,
currencies, characters in several tokens and parts of some. They have alignment heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transcripts import Expected, Transcripts
from transformers import WhisperTokenizerFast
from transformers.models.whisper.tokenization_whisper import _collate_word_timestamps
from whisper import EOS, LANGUAGES, RATE, SPECIAL, WORDS, make_whisper

from tandem.transcription import Transcription

# The third of the checkpoints' languages is Chinese here.
CODES = {"en": LANGUAGES["en"], "fr": LANGUAGES["fr"], "zh": LANGUAGES["de"]}
NAMES = {"en": "english", "fr": "french", "zh": "chinese"}
_SYLLABLES = [first + second for first in "bdfgklm" for second in "aeio"]
_TEXTS = [
    *(f" {one}" for one in _SYLLABLES[:20]), *_SYLLABLES[20:], " 3", "5", " 100", "00", ".", ",", "!", "?",
    "'", '"', ' "', " (", ")", " [", "]", "-", " -", " ¿", ":", " $", "$", "€", " €", "%", " ", "你", "好",
    "。", "、", "ก", "é",
]  # fmt: skip
_BYTES = [0xE4, 0xBD, 0xA0, 0xE5, 0xA5, 0xF0, 0x9F, 0x98, 0x80, 0xC3]


def _tokenizer(size: int) -> WhisperTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def shown(text: str) -> str:
        return "".join(part for part, _ in alphabet.pre_tokenize_str(text))

    plain = [shown(text) for text in _TEXTS]
    bytes_ = {byte: name for name, byte in _alphabet().items()}
    plain += [bytes_[byte] for byte in _BYTES]
    plain += [shown(f" w{number}") for number in range(WORDS - len(plain))]
    tokenizer = Tokenizer(BPE({text: at for at, text in enumerate(plain)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = alphabet, decoders.ByteLevel()
    special = [one.replace("<|de|>", "<|zh|>") for one in SPECIAL]
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in special])
    stamps = [f"<|{0.02 * n:.2f}|>" for n in range(size - WORDS - len(SPECIAL))]
    tokenizer.add_tokens([AddedToken(one, special=False) for one in stamps])
    end = SPECIAL[0]
    return WhisperTokenizerFast(
        tokenizer_object=tokenizer, unk_token=end, bos_token=end, eos_token=end, pad_token=end,
        additional_special_tokens=special[1:],
    )  # fmt: skip


def _alphabet() -> dict[str, int]:
    from tandem.workers.requests.answers.detokenizer.vocabulary import _ALPHABET

    return dict(_ALPHABET)


def make_timed(
    folder: Path, geometry: str, heads: Sequence[tuple[int, int]] | None, **overrides: Any
) -> Path:
    """heads: its alignment heads; None: it names none."""
    make_whisper(folder, geometry, times=True, **overrides)
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text())
    if "lang_to_id" in generation:
        generation["lang_to_id"] = {f"<|{code}|>": number for code, number in CODES.items()}
    if heads is not None:
        generation["alignment_heads"] = [list(pair) for pair in heads]
    path.write_text(json.dumps(generation))
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    _tokenizer(size).save_pretrained(folder)
    return folder


Words = list[tuple[str, float, float]]  # of a segment: text, start, end


class TimedTranscripts(Transcripts):
    """transformers' word times."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.words_tokenizer = WhisperTokenizerFast.from_pretrained(folder)

    def timed(self, samples: Any, code: str, **options: Any) -> tuple[Expected, list[Words]]:
        """code: of the language that words are split by."""
        mask = self.features_and_mask(samples)[1]
        made = self.generate(
            samples, return_timestamps=True, return_token_timestamps=True, attention_mask=mask,
            **options,
        )  # fmt: skip
        words, before, text_end = [], 0.0, self.words_tokenizer.eos_token_id
        for (_, _, ids), ends in zip(made.segments, made.token_ends, strict=True):
            times = []
            for token, end in zip(ids, ends, strict=True):
                if token < text_end:
                    times.append((round(before, 2), round(end, 2)))
                before = end
            text = [token for token in ids if token < text_end]
            found = _collate_word_timestamps(self.words_tokenizer, text, times, NAMES[code], False)
            words.append([(one["text"], *one["timestamp"]) for one in found])
        return made, words

    def features_and_mask(self, samples: Any) -> tuple[torch.Tensor, torch.Tensor]:
        extractor = self.reference.extractor
        how: Any = {"truncation": False, "padding": "longest"} if len(samples) > extractor.n_samples else {}
        made = extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **how)
        return made.input_features, made.attention_mask

    @torch.no_grad()
    def probabilities(self, window: torch.Tensor, prefix: Sequence[int], ids: Sequence[int]) -> list[float]:
        """Of the ids of text after a prefix, among all of text. window: its features."""
        read = torch.tensor([[*prefix, *ids]])
        logits = self.model(window, decoder_input_ids=read).logits[0, len(prefix) - 1 : -1, :EOS]
        each = logits.softmax(-1)
        return [float(each[at, token]) for at, token in enumerate(ids) if token < EOS]


def found_words(transcription: Transcription) -> list[Words]:
    words = []
    for segment in transcription.segments:
        assert segment.words is not None
        words.append([(one.word, one.start_s, one.end_s) for one in segment.words])
    return words


def close(found: list[Words], expected: list[Words], *, within_s: float) -> bool:
    """The same words, at times that differ by no more."""
    texts = [[[word for word, _, _ in of] for of in words] for words in (found, expected)]
    times = [
        np.array([time for of in words for _, start, end in of for time in (start, end)])
        for words in (found, expected)
    ]
    return texts[0] == texts[1] and bool((abs(times[0] - times[1]) < within_s + 1e-6).all())
