"""Images in a batch: folders, lines that name files, tables that hold them."""

from __future__ import annotations

import base64
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batches import Server, in_process, output, read, write
from typer.testing import CliRunner

from tandem import InvalidRequest, Overloaded, SamplingParams
from tandem.batch import corpus
from tandem.batch import run as batch
from tandem.batch.media_columns import MediaColumn
from tandem.batch.records import answer
from tandem.cli import app
from tandem.outputs import RequestOutput

COLUMN = MediaColumn("image", "image")


def said(text: str) -> dict[str, Any]:
    return answer(output(text.upper()))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Images of two and one bytes in a folder, from which paths begin."""
    for name in ("b/be.JPG", "a.png", "b/notes.txt", ".c.png"):
        path = tmp_path / "pages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.stem.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def run(source: Path, sink: Path, server: Server, **options: Any) -> batch.Summary:
    return batch.run(source, sink, lambda: server, use_tqdm=False, pipeline=in_process, **options)


def asked(server: Server) -> list[Any]:
    """The prompts, in any order, by their images."""
    prompts: list[Any] = [prompt for prompt, _, _ in server.asked]
    return sorted(prompts, key=lambda one: str(one.get("encoder_prompt", one)["multi_modal_data"]))


def test_a_folder_of_images(files: tuple[Path, Path]) -> None:
    server = Server()
    done = run(Path("pages"), files[1], server, defaults={"prompt": "<od>", "temperature": 0.0})
    assert done == batch.Summary(2, 0, 6)
    path = str(Path("pages/b/be.JPG").absolute())
    assert read(files[1])[1] == {"id": "b/be.JPG", "image": path} | said("<od>")
    assert asked(server) == [
        {"prompt": "<od>", "multi_modal_data": {"image": [data]}} for data in (b"a", b"be")
    ]
    assert [(params, priority) for _, params, priority in server.asked] == [
        (SamplingParams(temperature=0.0), -10)
    ] * 2
    run(Path("pages/*.png"), files[1].with_suffix(".all"), server)
    assert server.asked[-1][0] == {"prompt": "", "multi_modal_data": {"image": [b"a"]}}


@pytest.mark.usefixtures("files")
def test_recordings_are_not_passed_over_for_their_covers() -> None:
    Path("pages/talk.mp3").write_bytes(b"ba")
    assert corpus.files(Path("pages")) == [Path("pages/talk.mp3")]
    assert corpus.modality(Path("pages")) == "audio"
    assert corpus.modality(Path("pages/*.[pm]*")) is None


def test_lines_name_images_and_say_what_is_asked(files: tuple[Path, Path]) -> None:
    two = ["pages/a.png", {"bytes": base64.b64encode(b"bi").decode()}]
    write(
        files[0],
        {"file": "pages/a.png", "prompt": "what?", "label": 7, "max_tokens": 3},
        {"file": {"path": "pages/b/be.JPG"}, "id": "two", "encoder_prompt": "where?", "decoder_prompt": "It"},
        {"file": two, "prompt_token_ids": [4, 5]},
        {"file": {"bytes": base64.b64encode(b"c").decode(), "path": "elsewhere.png"}},
    )
    server = Server()
    told: list[list[str]] = []
    options: Any = {"media": MediaColumn("image", "file"), "defaults": {"prompt": "all", "seed": 1}}
    assert run(*files, server, **options, on_carried=told.append).answered == 4
    assert asked(server) == [
        {"prompt_token_ids": [4, 5], "multi_modal_data": {"image": [b"a", b"bi"]}},
        {"prompt": "what?", "multi_modal_data": {"image": [b"a"]}},
        {
            "encoder_prompt": {"prompt": "where?", "multi_modal_data": {"image": [b"be"]}},
            "decoder_prompt": "It",
        },
        {"prompt": "all", "multi_modal_data": {"image": [b"c"]}},
    ]
    assert {params.max_tokens for _, params, _ in server.asked if params} == {3, None}
    assert {params.seed for _, params, _ in server.asked if params} == {1}
    answers = read(files[1])
    assert [one.get("file") for one in answers] == ["pages/a.png", "pages/b/be.JPG", None, "elsewhere.png"]
    assert [one["id"] for one in answers] == [1, "two", 3, 4]
    assert answers[0] == {"id": 1, "file": "pages/a.png", "label": 7} | said("what?")
    assert told == [["label"]]


def test_tables_hold_images(tmp_path: Path) -> None:
    """As data sets have them, and as plain columns of bytes, of paths and of lists."""
    (tmp_path / "x.png").write_bytes(b"ba")
    kinds: dict[str, Any] = {
        "set": {"bytes": b"ba", "path": "a.png"}, "bytes": b"ba", "path": str(tmp_path / "x.png"),
        "list": [{"bytes": b"ba", "path": None}, {"bytes": b"bi", "path": None}],
    }  # fmt: skip
    for name, value in kinds.items():
        source, sink = tmp_path / f"{name}.parquet", tmp_path / f"{name}.jsonl"
        pq.write_table(pa.table({"image": [value] * 20, "text": ["a"] * 20}), source)
        server = Server()
        assert run(source, sink, server, media=COLUMN) == batch.Summary(20, 0, 60)
        images = [b"ba", b"bi"] if name == "list" else [b"ba"]
        assert asked(server) == [{"prompt": "", "multi_modal_data": {"image": images}}] * 20
        place = {"set": "a.png", "path": str(tmp_path / "x.png")}.get(name)
        kept = {} if place is None else {"image": place}
        assert read(sink)[19] == {"id": 20, **kept, "text": "a", **said("")}


def test_a_line_that_fails_has_its_error(files: tuple[Path, Path]) -> None:
    async def refuse(text: str) -> RequestOutput:
        field = {"p": "prompt", "m": "multi_modal_data.image", "n": "encoder_prompt.media.1"}[text]
        raise InvalidRequest(f"{text} is refused", field=field)

    good = "pages/a.png"
    bad: list[tuple[dict[str, Any], str]] = [
        ({"file": "nowhere.png"}, "file"),
        ({"file": "pages"}, "file"),
        ({"file": 7}, "file"),
        ({"file": [good, 7]}, "file.1"),
        ({"file": [{"bytes": "no base64"}]}, "file.0.bytes"),
        ({"prompt": "a text"}, "file"),
        ({"file": good, "max_token": 3}, "max_token"),
        ({"file": good, "num_beams": 0}, "num_beams"),
        ({"file": good, "id": [1]}, "id"),
        ({"file": good, "prompt": 3}, "prompt"),
        ({"file": good, "prompt": "a", "prompt_token_ids": [1]}, "prompt"),
        ({"file": good, "outputs": []}, "outputs"),
        ({"file": good, "prompt": "p"}, "prompt"),
        ({"file": good, "prompt": "m"}, "file"),
        ({"file": [good, good], "prompt": "n"}, "file.1"),
    ]
    write(files[0], *(line for line, _ in bad))
    done = run(*files, Server(refuse), media=MediaColumn("image", "file"))
    assert done == batch.Summary(0, len(bad), 0)
    answers = read(files[1])
    assert [one["error"]["param"] for one in answers] == [field for _, field in bad]
    assert answers[7]["file"] == good, "what it was is said"


def test_a_run_goes_on_where_it_was(files: tuple[Path, Path]) -> None:
    async def full(text: str) -> RequestOutput:
        raise Overloaded(f"full: no room for {text}")

    for number in range(40):
        (Path("pages") / f"n{number:02}.webp").write_bytes(b"bo")
    with pytest.raises(Overloaded):
        run(Path("pages"), files[1], Server(full), patience_s=0)
    run(Path("pages"), files[1], Server())
    lines = files[1].read_text().splitlines(keepends=True)
    assert len(lines) == 42
    files[1].write_text("".join(lines[:20]) + lines[20][:9])
    server = Server()
    assert run(Path("pages"), files[1], server).answered == len(server.asked) == 22
    assert files[1].read_text().splitlines(keepends=True) == lines


def test_what_every_line_would_be_refused_for_is_said_first(files: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(Path("pages"), files[1], Server(), defaults={"prompt": "a", "topp": 3})
    assert refused.value.field == "topp"
    write(files[0], {"prompt": "a"})
    for arguments, words in (
        (["pages", "--server", "http://localhost:1"], "images need the gRPC endpoint"),
        ([str(files[0]), "--prompt", "a"], "is for images"),
        ([str(files[0]), "--image-column", "a", "--audio-column", "b"], "one of them"),
    ):
        command = ["batch", arguments[0], str(files[1]), *arguments[1:]]
        shown = CliRunner().invoke(app, command, env={"COLUMNS": "160"})
        assert (shown.exit_code, words in shown.stderr) == (2, True), shown.stderr
    assert not files[1].exists()


def test_the_command_passes_the_column_and_the_prompt_on(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    monkeypatch.setattr("tandem.cluster.start.ray_alone", lambda _: nullcontext())
    monkeypatch.setattr("tandem.cli.batch._connect", lambda *_: server)
    monkeypatch.setattr(batch, "on_ray", in_process)
    write(files[0], {"picture": "pages/a.png"})
    for source, options in ((str(files[0]), ["--image-column", "picture"]), ("pages", [])):
        command = ["batch", source, str(files[1]), "--server", "x", "--prompt", "<od>", *options]
        shown = CliRunner().invoke(app, command)
        assert shown.exit_code == 0, shown.output
        assert {one["outputs"][0]["text"] for one in read(files[1])} == {"<OD>"}
        files[1].unlink()
    assert len(server.asked) == 3
