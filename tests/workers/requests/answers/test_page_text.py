"""Nougat's pages, held to transformers' tokenizer with what it asks other packages for."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from models import word_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.models.nougat import tokenization_nougat

from tandem.workers.requests.answers.page_text import PageText, ratio


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`NougatTokenizer` where Levenshtein and nltk are installed, and no list of words."""

    def words() -> Any:
        raise LookupError

    nltk = SimpleNamespace(corpus=SimpleNamespace(words=SimpleNamespace(words=words)))
    monkeypatch.setattr(tokenization_nougat, "nltk", nltk, raising=False)
    monkeypatch.setattr(tokenization_nougat, "ratio", by_table, raising=False)
    monkeypatch.setattr(tokenization_nougat, "requires_backends", lambda *_: None)
    return tokenization_nougat.NougatTokenizer()


def by_table(one: str, other: str) -> float:
    """`Levenshtein.ratio`, from the table of longest common subsequences."""
    row = [0] * (len(other) + 1)
    for character in one:
        above = row[:]
        for at, another in enumerate(other, 1):
            row[at] = above[at - 1] + 1 if character == another else max(above[at], row[at - 1])
    total = len(one) + len(other)
    return 1.0 if not total else 1.0 - (total - 2 * row[-1]) / total


class Texts:
    """A tokenizer whose ids are a text's characters."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(map(chr, ids))


@pytest.fixture(scope="module")
def tidy() -> PageText:
    return PageText(Texts())  # type: ignore[arg-type]


def test_ratio() -> None:
    # Of Levenshtein 0.27.5.
    assert ratio("abc", "abd") == pytest.approx(2 / 3)
    assert (ratio("", ""), ratio("", "a"), ratio("same", "same")) == (1.0, 0.0, 1.0)
    draw = random.Random(0)
    for _ in range(300):
        one, other = ("".join(draw.choices("abcdé中", k=draw.randrange(40))) for _ in range(2))
        assert ratio(one, other) == by_table(one, other)


PIECES = [
    "# Title", "## 1 Intro\n", "* [1] A. B. Smith, ", "The quick brown fox. ", "\n", "\n\n", "1.2 ii ",
    "- item - x * y ", "\\[a^2\\] (3)", "(3) \\[b\\]", "http://a.bc/d", "```code```", "_x_ ", "Table 3",
    "\\begin{table} \\begin{tabular}{l l} & \\\\ \\end{tabular} \\end{table}", "## References\n", "12 34 ",
    "[FOOTNOTE:a]b[ENDFOOTNOTE]", "\nFootnote 1: footnotetext: bla\n\n", "[MISSING_PAGE_POST]", "word ",
    "Éa ", "\\bm{x}", "**S. A. B.**\n", "* [12][]ABC", "a line of a reference with words\n", "İ",
]  # fmt: skip


def page(draw: random.Random) -> str:
    parts = draw.choices(PIECES, k=draw.randrange(1, 30))
    if draw.random() < 0.4:
        parts += [draw.choice(PIECES) * draw.randrange(1, 3)] * draw.randrange(2, 16)
    if draw.random() < 0.3:
        parts += [f"* [{n}] Smith and Jones {n}, a paper about it.\n" for n in range(draw.randrange(10, 60))]
    return "".join(parts + draw.choices(PIECES, k=draw.randrange(6)))


@pytest.mark.parametrize("seed", range(4))
def test_pages_are_the_tokenizers(seed: int, tidy: PageText, reference: Any) -> None:
    draw, changed = random.Random(seed), 0
    for _ in range(60):
        text = page(draw)
        expected = reference.post_process_generation(text, fix_markdown=True)
        assert tidy(list(map(ord, text))) == expected
        changed += "[MISSING_PAGE_POST]" in expected and "[MISSING_PAGE_POST]" not in text
    assert changed  # references that were made up are among them


@pytest.mark.parametrize(
    "text",
    [
        "the " * 4096, "a" * 16000, "A cat sat. " * 1500, "\n".join(["1"] * 900), "\n1" * 4000,
        "[FOOTNOTE:" * 50 + "]" * 9000, "\nFootnote 1: thanks:" + "-" * 15000 + "x\ny", "\\[" * 8000,
        "# 1." * 4000, "[FOOTNOTE:]" * 1500, "a" + "\n" * 4000 + "b", "a\n" + "1\n" * 4000 + "b",
    ],
)  # fmt: skip
def test_answers_that_repeat_themselves(text: str, tidy: PageText) -> None:
    """transformers takes minutes for some."""
    found = tidy(list(map(ord, text)))
    assert (found is None) == (text.count("[FOOTNOTE:") > 50 or text.count("\n") > 1000)


@pytest.mark.parametrize(("name", "reads"), [("NougatProcessor", True), ("DonutProcessor", False)])
def test_which_models_answers_are_pages(name: str, reads: bool, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"processor_class": name}))
    tokenizer: PreTrainedTokenizerFast = word_tokenizer(60)
    made = PageText.read(tmp_path, tokenizer)
    assert (made is not None) == reads
    if made is not None:
        ids = tokenizer.encode("ba be bi </s>", add_special_tokens=False)
        assert made(ids) == tokenizer.decode(ids, skip_special_tokens=True) + " "
