"""`bench/engine.py` with every model and load, in shapes of one small layer and without processes."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine
import engine_loads
import pytest
import turns
from engine_loads import LOADS, LONG, LONG_TOKENS, MODELS, SHAPES, RandomIds, loads, long_name
from transformers import BartConfig, T5Config

_SMALL = {
    "T5": {"vocab_size": 300, "d_model": 64, "d_kv": 64, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1,
           "num_heads": 1},
    "BART": {"vocab_size": 300, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1,
             "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
             "decoder_ffn_dim": 64},
}  # fmt: skip


class Here:
    """In the place of a process."""

    def __init__(self, name: str, make: Callable[[], engine.System]) -> None:
        self.name, self._system = name, make()

    def do(self, load: engine_loads.Load) -> engine.Outcome:
        outcome = self._system.do(load)
        if all(request.tokens for request in load.requests):
            assert outcome.tokens == sum(request.tokens or 0 for request in load.requests)
        return outcome

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    small = {}
    for title, config in SHAPES.items():
        small[title] = copy.deepcopy(config)
        small[title].update(_SMALL[title.partition("-")[0]])
    monkeypatch.setattr(engine_loads, "SHAPES", small)
    monkeypatch.setattr(engine, "Process", Here)
    monkeypatch.setattr(turns, "PAUSE_S", 0.0)
    out = tmp_path / "engine.json"

    def main(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["engine.py", "--rounds", "1", "--out", str(out), *arguments])
        engine.main()
        return json.loads(out.read_text())["models"]

    return main


RUNS = {
    "random T5-small": ("stream", "arrivals", "beam 4"),
    "random T5-base": ("1", "2048 in"),
    "random BART-large": ("1", "8", "stream", "beam 4", "512 in", "1024 in"),
}


@pytest.mark.parametrize("model", RUNS)
def test_loads_of_a_model(run: Callable[..., Any], model: str) -> None:
    """float32 against float32, and int8 against int8."""
    pytest.importorskip("ctranslate2")
    systems = ("tandem float32", "tandem int8", "ctranslate2 float32", "ctranslate2 int8")
    figures = run("--models", model, "--loads", *RUNS[model], "--systems", *systems)[model]
    assert tuple(figures) == RUNS[model]
    for load, by_system in figures.items():
        assert set(by_system) == set(systems), load
        for ours, theirs in (systems[::2], systems[1::2]):
            assert by_system[theirs]["tandem_over_this"][ours]["median"] > 0


def test_a_short_run_leaves_the_rest_as_it_was(run: Callable[..., Any]) -> None:
    model, alone = "random BART-large", ("--systems", "tandem int8")
    first = run("--models", model, "--loads", "1024 in", "1", *alone)
    again = run("--models", model, "random T5-base", "--loads", "512 in", "arrivals", *alone)
    assert {title: list(by_load) for title, by_load in again.items()} == {
        model: ["1", "512 in", "1024 in"],
        "random T5-base": ["512 in"],
    }
    assert all(again[model][load] == figures for load, figures in first[model].items())


def test_arrivals_need_the_stream_they_are_as_fast_as(run: Callable[..., Any]) -> None:
    for arguments in (("--loads", "arrivals"), ("--systems", "ctranslate2 int8")):
        with pytest.raises(SystemExit):
            run("--models", "random T5-small", *arguments)


@pytest.mark.parametrize("model", [model for model in MODELS if model != "quickstart"])
def test_requests_are_those_that_are_named(model: str) -> None:
    shape = SHAPES[MODELS[model].shape or ""]
    make, names = RandomIds(shape), MODELS[model].loads
    made = {load.name: load for load in loads(make, 3, names)}
    lengths = [length for length in LONG if long_name(length) in names]
    assert lengths == ([512, 1024] if isinstance(shape, BartConfig) else [512, 2048, 4000])
    for length in lengths:
        load = made[long_name(length)]
        assert [len(request.ids) for request in load.requests] == [length] * LONG[length]
        assert {request.tokens for request in load.requests} == {LONG_TOKENS}
        assert load.at_once == 1
    each = [request.ids for load in made.values() for request in load.requests]
    assert all(
        ids[-1] == shape.eos_token_id and min(ids[:-1]) > 3 - isinstance(shape, T5Config) for ids in each
    )
    assert max(map(max, each)) < shape.vocab_size
    for name in names:  # whichever others there are
        assert next(loads(make, 3, [name])) == made[name]
    if "arrivals" in made:
        assert made["arrivals"].requests == made["stream"].requests
    assert set(names) <= set(LOADS)


def test_shapes_are_the_published_ones() -> None:
    """Millions of parameters, as their cards say."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    for name, millions in (("T5-small", 60), ("T5-base", 223), ("BART-large", 406)):
        with torch.device("meta"):
            model = AutoModelForSeq2SeqLM.from_config(SHAPES[name])
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)
