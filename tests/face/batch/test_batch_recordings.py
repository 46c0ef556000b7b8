"""Recordings in a batch: folders, lines that name files, tables that hold them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batches import Server, in_process, read, transcription, write
from typer.testing import CliRunner

from tandem import InvalidRequest, Overloaded
from tandem.batch import corpus
from tandem.batch import run as batch
from tandem.batch.media_columns import MediaColumn
from tandem.cli import app
from tandem.outputs import RequestOutput
from tandem.transcripts import plain

ANSWER = plain(transcription("BA", 2.0))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The recordings "ba", "be" … in a folder, from which paths begin."""
    for name in ("b/be.mp3", "a.wav", "b/notes.txt", ".c.wav"):
        path = tmp_path / "talks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.stem.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def run(source: Path, sink: Path, server: Server, **options: Any) -> batch.Summary:
    return batch.run(source, sink, lambda: server, use_tqdm=False, pipeline=in_process, **options)


def test_a_folder_of_recordings(files: tuple[Path, Path]) -> None:
    server = Server()
    assert run(Path("talks"), files[1], server) == batch.Summary(2, 0, 4, 3.0)
    answers = read(files[1])
    assert [(one["id"], one["text"]) for one in answers] == [("a.wav", "A"), ("b/be.mp3", "BE")]
    path = str(Path("talks/b/be.mp3").absolute())
    assert answers[1] == {"id": "b/be.mp3", "audio": path} | plain(transcription("BE", 2.0))
    assert [asked for *_, asked in server.heard] == [{"semantics": "openai"}] * 2
    assert all(options["priority"] == -10 and options["timeout_s"] for _, options, _ in server.heard)


@pytest.mark.parametrize(
    ("source", "ids"),
    [
        ("talks/*/*.mp3", ["b/be.mp3"]),
        ("talks/a.wav", ["a.wav"]),
        ("talks/**/*.[mw]*", ["a.wav", "b/be.mp3"]),
    ],
)
def test_patterns_of_recordings(files: tuple[Path, Path], source: str, ids: list[str]) -> None:
    run(Path(source), files[1], Server())
    assert [one["id"] for one in read(files[1])] == ids


def test_lines_name_files_and_say_how(files: tuple[Path, Path]) -> None:
    write(
        files[0],
        {"file": "talks/a.wav", "language": "en", "speaker": 7, "text": "its own", "temperature": [0, 0.5]},
        {"file": {"path": "talks/b/be.mp3"}, "id": "two", "semantics": "transformers"},
        {"file": {"bytes": base64.b64encode(b"bi").decode(), "path": "elsewhere.wav"}},
    )
    server = Server()
    told: list[list[str]] = []
    done = run(
        *files,
        server,
        media=MediaColumn("audio", "file"),
        defaults={"language": "fr", "seed": 1},
        on_carried=told.append,
    )
    assert done == batch.Summary(3, 0, 6, 5.0)
    heard = [asked for *_, asked in server.heard]  # in any order
    assert len(heard) == 3
    assert {"semantics": "openai", "language": "en", "seed": 1, "temperature": [0, 0.5]} in heard
    assert {"semantics": "transformers", "language": "fr", "seed": 1} in heard
    assert {"semantics": "openai", "language": "fr", "seed": 1} in heard
    answers = read(files[1])
    assert (answers[0]["speaker"], answers[0]["input_text"], answers[0]["text"]) == (7, "its own", "A")
    assert [one["file"] for one in answers] == ["talks/a.wav", "talks/b/be.mp3", "elsewhere.wav"]
    assert [one["id"] for one in answers] == [1, "two", 3]
    assert told == [["speaker", "input_text"]]


def test_tables_hold_recordings(tmp_path: Path) -> None:
    """As data sets have them, and as plain columns of bytes and of paths."""
    (tmp_path / "x.wav").write_bytes(b"ba")
    many = [b"ba"] * 40
    kinds: dict[str, list[Any]] = {
        "set": [{"bytes": one, "path": "a.wav"} for one in many], "bytes": many,
        "path": [str(tmp_path / "x.wav")] * 40,
    }  # fmt: skip
    for name, column in kinds.items():
        source, sink = tmp_path / f"{name}.parquet", tmp_path / f"{name}.jsonl"
        pq.write_table(pa.table({"audio": column, "sentence": ["a"] * 40}), source)
        assert run(source, sink, Server(), media=MediaColumn("audio", "audio")) == batch.Summary(
            40, 0, 80, 80.0
        )
        place = {"set": "a.wav", "bytes": None, "path": str(tmp_path / "x.wav")}[name]
        kept = {} if place is None else {"audio": place}
        assert read(sink)[39] == {"id": 40, **kept, "sentence": "a", **ANSWER}


def test_a_line_that_fails_has_its_error(files: tuple[Path, Path]) -> None:
    async def refuse(text: str) -> RequestOutput:
        raise InvalidRequest(f"{text} is refused", field="audio" if text == "a" else "params.language")

    bad: list[tuple[dict[str, Any], str]] = [
        ({"file": "nowhere.wav"}, "file"),
        ({"file": "talks"}, "file"),
        ({"file": 7}, "file"),
        ({"file": {"bytes": "no base64"}}, "file.bytes"),
        ({"prompt": "a text"}, "file"),
        ({"file": "talks/a.wav", "languag": "en"}, "languag"),
        ({"file": "talks/a.wav", "num_beams": 0}, "num_beams"),
        ({"file": "talks/a.wav", "id": [1]}, "id"),
        ({"file": "talks/a.wav"}, "file"),
        ({"file": "talks/b/be.mp3"}, "language"),
    ]
    write(files[0], *(line for line, _ in bad))
    named: list[str] = []
    done = run(*files, Server(refuse), media=MediaColumn("audio", "file"), on_error=named.append)
    assert done == batch.Summary(0, len(bad), 0, 0.0)
    answers = read(files[1])
    assert [one["error"]["param"] for one in answers] == [field for _, field in bad]
    assert answers[5]["file"] == "talks/a.wav", "what it was is said"
    assert "a is refused" in answers[8]["error"]["message"]
    assert named[0].startswith("line 1: file: cannot be read")


def test_a_run_goes_on_where_it_was(files: tuple[Path, Path]) -> None:
    async def full(text: str) -> RequestOutput:
        raise Overloaded(f"full: no room for {text}")

    for number in range(40):
        (Path("talks") / f"n{number:02}.ogg").write_bytes(b"bo")
    with pytest.raises(Overloaded):
        run(Path("talks"), files[1], Server(full), patience_s=0)
    run(Path("talks"), files[1], Server())
    lines = files[1].read_text().splitlines(keepends=True)
    assert len(lines) == 42
    files[1].write_text("".join(lines[:20]) + lines[20][:9])
    server = Server()
    assert run(Path("talks"), files[1], server).answered == 22
    assert len(server.heard) == 22
    assert files[1].read_text().splitlines(keepends=True) == lines
    (Path("talks") / "A first.wav").touch()
    with pytest.raises(InvalidRequest, match="does not answer"):
        run(Path("talks"), files[1], Server())


def test_what_every_line_would_be_refused_for_is_said_first(files: tuple[Path, Path]) -> None:
    for defaults, field in (
        ({"top_k": 3}, "top_k"),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            run(Path("talks"), files[1], Server(), defaults=defaults)
        assert refused.value.field == field
    command = ["batch", "talks", str(files[1]), "--server", "http://localhost:1"]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "160"})
    assert shown.exit_code == 2
    assert "recordings need the gRPC endpoint" in shown.stderr
    assert not files[1].exists()


def test_a_folder_with_lines_is_its_lines(files: tuple[Path, Path]) -> None:
    write(Path("talks/in.jsonl"), {"prompt": "a"})
    assert corpus.files(Path("talks")) == [Path("talks/in.jsonl")]
    assert corpus.modality(Path("talks")) is None
    assert run(Path("talks"), files[1], Server()).answered == 1


def test_chunks_of_recordings_are_bounded(files: tuple[Path, Path]) -> None:
    large = {"audio": {"bytes": "A" * 2**22}}
    write(files[0], *[large] * 5, *[{"audio": "talks/a.wav"}] * 40)
    sizes = [len(chunk["numbers"].to_pylist()[0]) for chunk in batch._read(files[0], 0)]
    assert sizes == [2, 2, 16, 16, 9]
    assert json.loads(files[0].read_text().splitlines()[0]) == large
