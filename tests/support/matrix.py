"""The parity matrix: what is asked of every family, in Tandem's words and in transformers'.

`pytest tests/parity/test_matrix.py` prints it; with `--write-matrix` it replaces the one in docs/parity.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from models import DECODER_VARIANTS, EOS, VARIANTS

from tandem.workers.request import BeamSearch

PARITY = Path(__file__).parents[2] / "docs" / "parity.md"
RANKS = (1, 2)  # tensor-parallel sizes
LENGTHS = (1, 2, 3, 7, 16, 33, 90, 149)  # tokens of a prompt, before EOS


@dataclass(frozen=True)
class Asked:
    """One request."""

    length: int = 7  # tokens of its prompt
    max_tokens: int = 14
    ours: Mapping[str, Any] = field(default_factory=dict)  # fields of Decoding
    theirs: Mapping[str, Any] = field(default_factory=dict)  # arguments of generate
    beams: BeamSearch | None = None
    decoder_prompt: tuple[int, ...] = ()
    ban: int = 0  # how many of the tokens that its answer would begin with are made a bad word


def beams(width: int = 4, **options: Any) -> BeamSearch:
    """How to search; without options, for the best of `width` beams."""
    how = {"num_return_sequences": 1, "length_penalty": 1.0, "early_stopping": False, **options}
    return BeamSearch(num_beams=width, **how)


# When a search stops makes a difference where beams end often, in all the beams more than in the best.
_STOPS = {"stop_ids": frozenset({EOS, 9, 17, 30, 60, 88})}, {"eos_token_id": [EOS, 9, 17, 30, 60, 88]}


def _searches(early_stopping: Any) -> list[Asked]:
    penalties = ((0.0, 2), (0.6, 17), (2.0, 30))
    return [
        Asked(length, ours=_STOPS[0], theirs=_STOPS[1],
              beams=beams(length_penalty=penalty, early_stopping=early_stopping, num_return_sequences=4))
        for penalty, length in penalties
    ]  # fmt: skip


_NO_REPEAT = {"no_repeat_ngram_size": 2}
_REPETITION = {"repetition_penalty": 1.7}
_MIN = {"min_tokens": 9}, {"min_new_tokens": 9}
_FORCED_BOS = {"forced_bos_id": 33}, {"forced_bos_token_id": 33}
_FORCED_EOS = {"forced_eos_ids": (EOS,)}, {"forced_eos_token_id": EOS}
_FORCED = {**_FORCED_BOS[0], **_FORCED_EOS[0]}, {**_FORCED_BOS[1], **_FORCED_EOS[1]}
_BIAS = tuple((token, -9.0 if token % 5 else 2.0) for token in range(3, 60))
_BEGIN = tuple(range(20, 70))

MODES: dict[str, list[Asked]] = {
    "greedy": [Asked(length, max_tokens=24) for length in LENGTHS],
    "decoder prompt": [
        Asked(7, decoder_prompt=(12, 9, 12)),
        Asked(33, decoder_prompt=(5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)),
        Asked(16, decoder_prompt=(9, 30), beams=beams()),
    ],
    "forced tokens": [
        # A decoder-only model's first token is the one after a prompt of one token.
        Asked(1, ours=_FORCED_BOS[0], theirs=_FORCED_BOS[1]),
        Asked(8, 6, ours=_FORCED_EOS[0], theirs=_FORCED_EOS[1]),
        Asked(1, ours=_FORCED[0], theirs=_FORCED[1], beams=beams(early_stopping=True)),
    ],
    "no repeat n-gram": [
        Asked(3, ours=_NO_REPEAT, theirs=_NO_REPEAT),
        Asked(30, ours={"no_repeat_ngram_size": 1}, theirs={"no_repeat_ngram_size": 1}),
        Asked(8, ours={"encoder_no_repeat_ngram_size": 1}, theirs={"encoder_no_repeat_ngram_size": 1}),
        Asked(8, ours=_NO_REPEAT, theirs=_NO_REPEAT, beams=beams()),
    ],
    "bad words": [Asked(5, ban=1), Asked(30, ban=2), Asked(8, ban=2, beams=beams())],
    "min length": [
        Asked(3, ours=_MIN[0], theirs=_MIN[1]),
        Asked(30, ours=_MIN[0], theirs=_MIN[1]),
        Asked(8, ours=_MIN[0], theirs=_MIN[1], beams=beams()),
    ],
    "penalty, bias": [
        Asked(3, ours=_REPETITION, theirs=_REPETITION),
        Asked(8, ours={"logit_bias": _BIAS}, theirs={"sequence_bias": {(id,): by for id, by in _BIAS}}),
        Asked(20, ours={"suppress_ids": _BEGIN[::2], "begin_suppress_ids": _BEGIN},
              theirs={"suppress_tokens": list(_BEGIN[::2]), "begin_suppress_tokens": list(_BEGIN)}),
        Asked(8, ours=_REPETITION, theirs=_REPETITION, beams=beams(renormalize=True)),
    ],
    # What bart-large-cnn's config asks for, and more.
    "all of these": [
        Asked(17, ours={**_FORCED[0], **_NO_REPEAT, **_REPETITION, "min_tokens": 5},
              theirs={**_FORCED[1], **_NO_REPEAT, **_REPETITION, "min_new_tokens": 5}, ban=2, beams=search)
        for search in (None, beams(early_stopping=True))
    ],
    "beams": _searches(False),
    "beams, early": _searches(True),
    "beams, never early": _searches("never"),
    "n-best": [
        Asked(5, beams=beams(num_return_sequences=4)),
        # Few tokens: a negative penalty multiplies the rounding.
        Asked(30, 6, beams=beams(5, num_return_sequences=3, length_penalty=-0.5, early_stopping=True)),
        Asked(12, ours={"stop_ids": frozenset({EOS, 9, 17})}, theirs={"eos_token_id": [EOS, 9, 17]},
              beams=beams(3, num_return_sequences=3, early_stopping="never")),
    ],
}  # fmt: skip


def asked(family: str, mode: str) -> list[Asked]:
    """A mode's requests for a family. A decoder-only model has no second prompt and no encoder n-grams."""
    if family not in DECODER_VARIANTS:
        return MODES[mode]
    return [
        one
        for one in MODES[mode]
        if not one.decoder_prompt and "encoder_no_repeat_ngram_size" not in one.ours
    ]


CELLS = [(family, mode) for family, mode in product(VARIANTS, MODES) if asked(family, mode)]
Counts = Mapping[tuple[str, str], tuple[int, int]]  # family, mode → exact, total


def complete() -> Counts:
    """Every cell, and every request exact."""
    totals = {cell: len(asked(*cell)) * len(RANKS) for cell in CELLS}
    return {cell: (total, total) for cell, total in totals.items()}


def table(counts: Counts) -> str:
    """The matrix in Markdown, in the order of VARIANTS and MODES."""
    rows = [
        [family, *("/".join(map(str, counts.get((family, mode), ()))) or "–" for mode in MODES)]
        for family in VARIANTS
        if any((family, mode) in counts for mode in MODES)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [["", *MODES], ["---"] * (1 + len(MODES)), *rows])


_MARKED = re.compile(r"(?<=<!-- parity matrix -->\n).*?(?=\n<!-- /parity matrix -->)", re.DOTALL)


def documented() -> str:
    """The table in docs/parity.md."""
    found = _MARKED.search(PARITY.read_text(encoding="utf-8"))
    assert found is not None
    return found[0]


def document(counts: Counts) -> None:
    """Replaces the table in docs/parity.md."""
    text = PARITY.read_text(encoding="utf-8")
    PARITY.write_text(_MARKED.sub(lambda _: table(counts), text), encoding="utf-8")
