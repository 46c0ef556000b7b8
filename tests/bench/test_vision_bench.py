"""The comparison of images a second runs, on tiny models: both systems are asked for the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest


def _load() -> Any:
    """bench/vision.py, which tests/support has another module of the name of."""
    spec = spec_from_file_location("bench_vision", Path(__file__).parents[2] / "bench" / "vision.py")
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[spec.name] = module_from_spec(spec)  # where dataclasses look
    spec.loader.exec_module(made)
    return made


vision = _load()
_TROCR = partial(
    vision.trocr,
    encoder={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    decoder={"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32},
)
_FLORENCE = partial(
    vision.florence,
    vision={
        "embed_dim": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
        "num_groups": [1, 1, 2, 2], "projection_dim": 32,
    },
    text={
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    },
)  # fmt: skip


@pytest.mark.parametrize(("make", "asks"), [(_TROCR, False), (_FLORENCE, True)], ids=["trocr", "florence"])
def test_both_answer(make: Callable[[Path], None], asks: bool, tmp_path: Path) -> None:
    make(tmp_path)
    load = vision.pictures(2, 1)
    assert load != vision.pictures(2, 2)
    outcomes = {
        "tandem float32": [vision.Tandem(tmp_path, "float32", asks=asks).do(load)],
        "tandem int8": [vision.Tandem(tmp_path, "int8", asks=asks).do(load)],
        vision.REFERENCE: [vision.Transformers(tmp_path, "float32", asks=asks).do(load)],
    }
    for (outcome,) in outcomes.values():
        assert [len(ids) for ids in outcome.answers] == [vision.TOKENS] * 2
        assert outcome.answers[0][-1] == outcomes[vision.REFERENCE][0].answers[0][-1] or not asks  # EOS
    figures = vision.figures_of(2, outcomes)
    assert figures[vision.REFERENCE]["as_reference"] == 1
    assert set(figures["tandem int8"]["over"]) == {vision.REFERENCE}
    assert figures["tandem float32"]["images_per_s"]["median"] > 0
