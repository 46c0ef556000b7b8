"""`tandem show` of models whose weights are not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub
import pytest
from llama_shapes import COUNTS, TILE, folder_of
from typer.testing import CliRunner

from tandem.cli import app
from tandem.cli.models.describe import describe

PAGE = 64  # positions, on a GPU


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["show", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", COUNTS)
def test_what_llama_vision_needs(name: str, tmp_path: Path) -> None:
    """From config.json alone: weights, and K/V of images of four tiles, by precision and ranks."""
    folder = folder_of(name, tmp_path)
    facts = describe(str(folder), (None, 128), device="cuda", dtype="bfloat16", kv_cache_gib=40)
    memory = facts["memory"]
    assert memory["counted_from"] == "config.json"
    assert memory["fits"]["input_tokens"] == 4 * TILE
    workers = {(one["precision"], one["ranks"]): one for one in facts["workers"]}
    assert list(workers) == [(how, ranks) for how in ("bfloat16", "int8") for ranks in (1, 2, 4, 8)]
    whole = workers["bfloat16", 1]
    assert whole["colocated"] == 2 * sum(COUNTS[name].values())
    assert whole["encoder_worker"] == memory["encoder_weights"] == 2 * COUNTS[name]["front"]
    layers, crossing = {"11B": (40, 8), "90B": (100, 20)}[name]
    # A page has the K and V of 64 positions of a text, and of four times as many of an image.
    page = PAGE * 2 * (layers - crossing) * 8 * 128 * 2
    assert memory["self_kv_per_position"] * PAGE == page
    pages = -(-4 * TILE // (4 * PAGE)) + 128 // PAGE
    for ranks in (1, 2, 4, 8):
        worker = workers["bfloat16", ranks]
        assert worker["kv"] == {str(slots): slots * pages * page // ranks for slots in (1, 16, 64, 256)}
        assert worker["encoder_worker"] == whole["encoder_worker"]
        assert worker["colocated"] - worker["decoder_worker"] == whole["encoder_worker"]
        assert worker["decoder_worker"] == pytest.approx(whole["decoder_worker"] / ranks, rel=1e-3)
        assert sum(worker["parts"].values()) == worker["colocated"]
        quantized = workers["int8", ranks]
        assert quantized["decoder_worker"] < 0.6 * worker["decoder_worker"]


def test_a_table_of_workers(tmp_path: Path) -> None:
    text = shown(str(folder_of("11B", tmp_path)), "--device", "cuda", "--kv-cache-gib", "40")
    for fact in (
        "whose weights are not there", "front (image)", "cross-attention", "bfloat16 on cuda", "int8 on cpu",
        "embedding and output", "6404 in, 128 out", "19.87 GiB", "16 slots", "colocated",
    ):  # fmt: skip
        assert fact in text, text


def test_the_documents_table(tmp_path: Path) -> None:
    """docs/run.md has what the command says."""
    manual = (Path(__file__).parents[3] / "docs" / "run.md").read_text()
    for name in COUNTS:
        facts = describe(str(folder_of(name, tmp_path)), (None, 128), device="cuda", num_pages=1)
        [row] = [line for line in manual.splitlines() if line.startswith(f"| {name} |")]
        workers = [one for one in facts["workers"] if one["precision"] == "bfloat16"]
        whole = workers[0]
        sizes = [whole["parts"][part] for part in ("front", "cross_attention", "decoder", "vocabulary")]
        for size in [*sizes, whole["decoder_worker"], whole["kv"]["64"]]:
            assert f"{size / 2**30:.4g} GiB" in row
        for worker in workers[1:]:
            assert f"{worker['ranks']} of {round(worker['decoder_worker'] / 2**30, 2):g}" in row


def test_an_input_is_as_long_as_it_is_said_to_be(tmp_path: Path) -> None:
    folder = str(folder_of("11B", tmp_path))
    options = ("--device", "cuda", "--kv-cache-gib", "8", "--json")
    fits = json.loads(shown(folder, *options, "--input-tokens", "100"))["memory"]["fits"]
    assert fits["input_tokens"] == 100
    assert fits["sequences"] == 8 * 2**30 // (PAGE * 2 * 32 * 8 * 128 * 2) // (1 + 2)


def test_ranks_that_do_not_divide_the_heads_are_left_out(checkpoint: Callable[..., Path]) -> None:
    facts = describe(str(checkpoint("bart")), (40, 20), device="cpu")
    # The encoder has two heads.
    assert {one["ranks"] for one in facts["workers"]} == {1, 2}
    assert facts["memory"]["counted_from"] == "weights"
    text = shown(str(checkpoint("gpt2")), "--device", "cpu")
    assert "colocated" not in text, "a decoder alone has one kind of worker"


def test_weights_of_the_hub_are_not_fetched(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("flan")
    with hub.running(tmp_path / "cache") as running:
        running.add("tiny/model", folder)
        facts: dict[str, Any] = describe("tiny/model", (40, 20), device="cpu")
        assert "config.json" in running.fetched
        assert "model.safetensors" not in running.fetched
    assert facts["memory"]["counted_from"] == "config.json"
    assert facts["workers"] == describe(str(folder), (40, 20), device="cpu")["workers"]
