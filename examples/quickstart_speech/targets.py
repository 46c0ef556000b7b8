"""Clips to batches: features of one length, and what the decoder is to say, in one of Whisper's forms."""

from __future__ import annotations

import random
from typing import Final, NamedTuple

import torch
from clips import FRAMES, MELS, STEP_S, Clip, Segment
from tokenizer import Ids
from transformers import WhisperTokenizer

IGNORED: Final = -100
LONGEST: Final = 160  # tokens that the decoder holds
_BEFORE: Final = 72  # tokens of earlier text
_MARGIN: Final = 2  # encoder positions around a token that may be looked at for it

Token = tuple[int, tuple[float, float] | None]  # id, and from when to when it is said, in seconds


class Batch(NamedTuple):
    mel: torch.Tensor  # float32 [clips, mel bins, frames]
    sounds: torch.Tensor  # int64 [clips, positions], IGNORED after the clip
    heard: torch.Tensor  # int64 [clips, positions], the token that is said there, IGNORED in pauses
    ids: torch.Tensor  # int64 [clips, tokens], the decoder's input
    labels: torch.Tensor  # int64 [clips, tokens]
    # int64 [clips, tokens, 2]: encoder positions, from and to, where a row's label is said; the same twice
    # where it is not.
    spans: torch.Tensor


class Maker:
    """Makes batches, at random which of the forms."""

    def __init__(self, tokenizer: WhisperTokenizer, ids: Ids) -> None:
        self._tokenizer, self._ids = tokenizer, ids
        self.sounds: dict[str, int] = {}  # numbered as they come
        self._known: dict[str, list[int]] = {}

    def batch(self, clips: list[Clip], texts: list[str], rng: random.Random, *, whole: bool) -> Batch:
        """whole: as long as the window; else as long as the longest clip. texts: said before, for some."""
        frames = FRAMES if whole else max(len(clip.mel) for clip in clips)
        mel = torch.empty(len(clips), frames, MELS)
        sounds = torch.full((len(clips), frames // 2), IGNORED)
        heard = torch.full((len(clips), frames // 2), IGNORED)
        rows = []
        for number, clip in enumerate(clips):
            length = len(clip.mel)
            mel[number, :length] = torch.from_numpy(clip.mel)
            # A long recording's last window is followed by zeros, which are no silence.
            mel[number, length:] = 0.0 if rng.random() < 0.1 else clip.silence
            known = [self.sounds.setdefault(name, len(self.sounds)) for name in clip.sounds]
            sounds[number, : len(known)] = torch.tensor(known)
            for token, span in (one for segment in clip.segments for one in self._said(segment)):
                assert span is not None
                heard[number, round(span[0] / STEP_S) : round(span[1] / STEP_S)] = token
            rows.append(self._row(clip, texts, rng))
        longest = max(len(ids) for ids, _, _ in rows)
        ids = torch.full((len(clips), longest), self._ids.end)
        labels = torch.full((len(clips), longest), IGNORED)
        spans = torch.zeros(len(clips), longest, 2, dtype=torch.int64)
        for number, (own, own_labels, own_spans) in enumerate(rows):
            ids[number, : len(own)] = torch.tensor(own)
            labels[number, : len(own)] = torch.tensor(own_labels)
            spans[number, : len(own)] = torch.tensor(own_spans)
        mel = mel.transpose(1, 2).contiguous()
        return Batch(mel, sounds, heard, ids, labels, spans.clamp_(0, frames // 2))

    def _row(
        self, clip: Clip, texts: list[str], rng: random.Random
    ) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """Decoder input, labels and spans of a clip."""
        one = self._ids
        times = clip.cut_s is not None or rng.random() < 0.5
        head = [one.start, one.english, one.transcribe] + ([] if times else [one.no_times])
        tokens: list[Token] = []
        if not clip.segments and clip.cut_s is None and times:
            tokens.append((one.time(0), None))
        for segment in clip.segments:
            said = self._said(segment)
            if times:
                said = [(one.time(segment.start_s), None), *said, (one.time(segment.end_s), None)]
            tokens += said
        if clip.cut_s is not None:
            tokens.append((one.time(clip.cut_s), None))
        ids = [*head, *(token for token, _ in tokens)]
        # The row of <|transcribe|> learns the first time only: <|notimestamps|> is for the caller to say.
        opening = [one.english if clip.segments or clip.cut_s is not None else one.no_speech, IGNORED]
        labels = [*opening, *([] if times else [IGNORED]), *(token for token, _ in tokens), one.end]
        seen = [None] * (len(head) - 1) + [span for _, span in tokens] + [None]
        spans = [_positions(span) for span in seen]
        if texts and rng.random() < 0.15:
            before = rng.sample(texts, rng.randint(1, 4))
            earlier = [token for text in before for token in self._encoded(text)]
            earlier = [one.before, *earlier[-_BEFORE:]]
            ids = earlier + ids
            labels = [IGNORED] * len(earlier) + labels
            spans = [(0, 0)] * len(earlier) + spans
        return ids[:LONGEST], labels[:LONGEST], spans[:LONGEST]

    def _said(self, segment: Segment) -> list[Token]:
        """The tokens of a word have equal parts of its time."""
        said: list[Token] = []
        for piece in segment.pieces:
            tokens = self._encoded(piece.written)
            part = (piece.end_s - piece.start_s) / len(tokens)
            for number, token in enumerate(tokens):
                begin = piece.start_s + number * part
                said.append((token, (begin, begin + part)))
        return said

    def _encoded(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return self._known[text]


def _positions(span: tuple[float, float] | None) -> tuple[int, int]:
    if span is None:
        return 0, 0
    return max(0, int(span[0] / STEP_S) - _MARGIN), int(span[1] / STEP_S) + 1 + _MARGIN


def batches(clips: list[Clip], frames: int, rng: random.Random) -> list[list[Clip]]:
    """Batches of about so many frames, of like lengths, in random order."""
    order = sorted(clips, key=lambda clip: len(clip.mel) + rng.uniform(0, 30))
    made: list[list[Clip]] = [[]]
    for clip in order:
        if made[-1] and (len(made[-1]) + 1) * len(clip.mel) > frames:
            made.append([])
        made[-1].append(clip)
    rng.shuffle(made)
    return made
