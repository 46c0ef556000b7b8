"""Lines to batches: what the encoder takes, what the decoder is to say, and where it is written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import torch
from fonts import faces
from render import WIDTH, Line, image_processor, place, render
from texts import LONGEST, Source
from tokenizer import IDS, make_tokenizer
from torch.utils.data import IterableDataset

PATCH: Final = 4  # pixels of a position's width; it is as high as the picture
POSITIONS: Final = WIDTH // PATCH
TOKENS: Final = LONGEST + 2  # of a line, with its marks
IGNORED: Final = -100
_MARGIN: Final = 1  # positions around a character that may be looked at for it
_LINES_A_ROUND: Final = 512  # that are made before they are sorted into batches
_NOISY: Final = 0.6  # share of the lines


class Batch(NamedTuple):
    pixels: torch.Tensor  # float32 [lines, 3, HEIGHT, WIDTH]
    seen: torch.Tensor  # int64 [lines, POSITIONS], the token that is written there, IGNORED outside
    ids: torch.Tensor  # int64 [lines, tokens], the decoder's input
    labels: torch.Tensor  # int64 [lines, tokens]
    # int64 [lines, tokens, 2]: positions, from and to, where a row's label is written; the same twice where
    # it is not.
    spans: torch.Tensor
    begin: int  # first position of any of the pictures
    end: int  # after the last one


class Maker:
    """Makes batches of lines."""

    def __init__(self) -> None:
        self.tokenizer, self.processor = make_tokenizer(TOKENS), image_processor()

    def pixels(self, lines: list[Line]) -> torch.Tensor:
        """float32 [lines, 3, HEIGHT, WIDTH]."""
        return self.processor([line.image for line in lines], return_tensors="pt")["pixel_values"]

    def batch(self, lines: list[Line]) -> Batch:
        rows = self.tokenizer([line.text for line in lines])["input_ids"]
        longest = max(map(len, rows)) - 1
        seen = torch.full((len(lines), POSITIONS), IGNORED)
        ids = torch.full((len(lines), longest), IDS.pad)
        labels = torch.full((len(lines), longest), IGNORED)
        spans = torch.zeros(len(lines), longest, 2, dtype=torch.int64)
        middles = (torch.arange(POSITIONS) + 0.5) * PATCH
        for number, (line, row) in enumerate(zip(lines, rows, strict=True)):
            edges = torch.tensor(line.placed())
            at = torch.searchsorted(edges, middles)  # 0 before the first character
            written = torch.tensor([IGNORED, *row[1:-1], IGNORED])
            seen[number] = written[at]
            ids[number, : len(row) - 1] = torch.tensor(row[:-1])
            labels[number, : len(row) - 1] = torch.tensor(row[1:])
            spans[number, : len(row) - 2, 0] = (edges[:-1] / PATCH).long() - _MARGIN
            spans[number, : len(row) - 2, 1] = (edges[1:] / PATCH).long() + 1 + _MARGIN
        lefts, widths = zip(*(place(*line.image.size) for line in lines), strict=True)
        end = max(left + width for left, width in zip(lefts, widths, strict=True))
        return Batch(
            self.pixels(lines), seen, ids, labels, spans.clamp_(0, POSITIONS), min(lefts) // PATCH,
            -(-end // PATCH),
        )  # fmt: skip


class Batches(IterableDataset[Batch]):
    """Batches without an end; a run that goes on at another step has other ones."""

    def __init__(self, files: list[Path], positions: int, seed: int, step: int) -> None:
        """positions: about so many in a batch. step: batches that have been taken before."""
        self._files, self._positions, self._seed, self._step = files, positions, seed, step

    def __iter__(self) -> Iterator[Batch]:
        source, maker, fonts = Source(self._files, "train"), Maker(), faces(held_out=False)
        rng = random.Random(f"{self._seed} {self._step}")
        while True:
            lines = [
                render(source.draw(rng), rng.choice(fonts), rng, noisy=rng.random() < _NOISY)
                for _ in range(_LINES_A_ROUND)
            ]
            for group in grouped(lines, self._positions, rng):
                yield maker.batch(group)


def grouped(lines: list[Line], positions: int, rng: random.Random) -> list[list[Line]]:
    """Groups of about so many positions, of like widths, in random order."""
    made: list[list[Line]] = [[]]
    for line in sorted(lines, key=lambda line: place(*line.image.size)[1] + rng.uniform(0, 32)):
        _, width = place(*line.image.size)
        if made[-1] and (len(made[-1]) + 1) * width > positions * PATCH:
            made.append([])
        made[-1].append(line)
    rng.shuffle(made)
    return made
