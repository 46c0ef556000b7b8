"""The tokens and offsets of a completion's log-probabilities are those of its text."""

from __future__ import annotations

import pytest
from tiny_tokenizers import Maker, blenderbot_small, unigram, whisper

from tandem.cluster.ingress.http.answers import TokenTexts
from tandem.cluster.ingress.http.completions import _LogprobsShape
from tandem.outputs import TokenLogprobs
from tandem.workers.requests.answers.detokenizer import Vocabulary


@pytest.mark.parametrize(
    ("maker", "names", "shown", "offsets"),
    [
        (blenderbot_small, ["ye@@", "z@@", "db", "uc"], ["ye", "z", "db", " uc"], [0, 2, 3, 5]),
        (unigram, ["▁the", "</s>", "▁a"], ["the", "</s>", " a"], [0, 3, 3]),
        (whisper, ["<|0.00|>", "he", "Ġt"], ["<|0.00|>", "he", " t"], [0, 0, 2]),
    ],
)
def test_tokens_and_offsets(maker: Maker, names: list[str], shown: list[str], offsets: list[int]) -> None:
    tokenizer = maker()
    tokenizer.add_tokens([name for name in names if name.startswith("▁")])
    ids = tokenizer.convert_tokens_to_ids(names)
    assert isinstance(ids, list)
    made = [TokenLogprobs(i, -1.0, [(i, -1.0)]) for i in ids]
    shape = _LogprobsShape(TokenTexts(Vocabulary(tokenizer))).shape(made)
    assert shape is not None
    assert (shape["tokens"], shape["text_offset"]) == (shown, offsets)
    assert shape["top_logprobs"] == [{text: -1.0} for text in shown]
    whole = str(tokenizer.decode(ids, skip_special_tokens=True))
    assert all(
        whole[at:].startswith(text) for text, at in zip(shown, offsets, strict=True) if "<" not in text
    )
