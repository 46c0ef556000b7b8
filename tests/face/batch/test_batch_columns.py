"""Lines with members that are no part of a request, as data sets have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batches import Server, in_process, read, write

from tandem.batch import records
from tandem.batch import run as batch


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def run(files: tuple[Path, Path], told: list[list[str]], **options: Any) -> batch.Summary:
    server = Server()
    return batch.run(
        *files, lambda: server, use_tqdm=False, pipeline=in_process, on_carried=told.append, **options
    )


def test_further_members_are_copied_to_the_answers_and_named_once(files: tuple[Path, Path]) -> None:
    write(
        files[0],
        *({"prompt": f"p{n}", "label": n, "source": {"url": "x"}, "metadata": None} for n in range(40)),
        {"prompt": "last", "late": [1], "max_tokens": 3},
    )
    told: list[list[str]] = []
    assert run(files, told) == batch.Summary(41, 0, 123)
    answers = read(files[1])
    assert [one.get("label") for one in answers] == [*range(40), None]
    assert answers[0]["source"] == {"url": "x"}
    assert answers[0]["metadata"] is None
    assert answers[40]["late"] == [1]
    assert "max_tokens" not in answers[40]
    assert told == [["label", "source", "metadata"], ["late"]]


def test_columns_of_a_table_too(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "id": ["x", "y"], "split": ["test", None]}), source)
    told: list[list[str]] = []
    run((source, tmp_path / "out.jsonl"), told)
    answers = read(tmp_path / "out.jsonl")
    assert [(one["id"], one.get("split")) for one in answers] == [("x", "test"), ("y", None)]
    assert told == [["split"]]


@pytest.mark.parametrize("name", [
    "top_q", "max_token", "temprature", "tempreature", "num_beam", "do_sample", "num_beam_groups", "Seed",
    "guided_json", "echo", "maxTokens", "topP", "top-k", "source_langage", "repitition_penalty", "beam_size",
])  # fmt: skip
def test_what_may_be_a_parameter_is_refused_by_name(files: tuple[Path, Path], name: str) -> None:
    write(files[0], {"prompt": "a", name: 1, "label": "kept"})
    told: list[list[str]] = []
    assert run(files, told).refused == 1
    [answer] = read(files[1])
    assert answer["error"]["param"] == name
    assert answer["label"] == "kept"


def test_columns_of_common_data_sets_are_carried_and_like_names_named(files: tuple[Path, Path]) -> None:
    names = [
        "prompt_id", "idx", "ids", "num_tokens", "n_tokens", "tokens", "token_ids", "source_lang",
        "target_lang", "length", "task_type", "tasks", "seeds", "logprob", "top", "topic", "prompts",
        "prompt_text", "response", "stop_reason", "input", "output", "answer", "language", "suffixes", "user",
        "version", "ID", "N", "temp", "k",
    ]  # fmt: skip
    write(files[0], {"prompt": "a", **dict.fromkeys(names, 1)})
    told: list[list[str]] = []
    assert run(files, told) == batch.Summary(1, 0, 3)
    [answer] = read(files[1])
    assert {name: answer[name] for name in names} == dict.fromkeys(names, 1)
    assert told == [names]
    like = {name: records.near(name) for name in ("num_tokens", "source_lang", "seeds", "label", "topic")}
    assert like == {
        "num_tokens": "min_tokens", "source_lang": "source_language", "seeds": "seed", "label": None,
        "topic": None,
    }  # fmt: skip


def test_names_of_answers_are_refused(files: tuple[Path, Path]) -> None:
    write(files[0], {"prompt": "a", "outputs": 1}, {"prompt": "a", "error": None})
    assert run(files, []).refused == 2
    assert [answer["error"]["param"] for answer in read(files[1])] == ["outputs", "error"]
