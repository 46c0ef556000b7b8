"""`tandem transcribe`: recordings and folders in, transcripts out, one file each."""

from __future__ import annotations

import json
import os
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from audio_files import encoded, wav
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result
from whisper import RATE, make_whisper, sound

from tandem import (
    LLM,
    InvalidRequest,
    Overloaded,
    Transcription,
    TranscriptionDelta,
    TranscriptionSegment,
    Unavailable,
)
from tandem.cli import app
from tandem.cli.speech.recordings import Recording, destinations, named
from tandem.cli.speech.transcribe import Format
from tandem.transcripts import FORMATS, written

ROOT = Path(__file__).parents[3]
SEGMENT = TranscriptionSegment(0, 0.0, 0.0, 1.5, " Hello.", [1], 0.0, -0.5, 1.0, 0.1)
SPOKEN = Transcription("Hello.", "en", 2.0, [SEGMENT], "sequential", 50, 1)


def run(*arguments: str | Path, stdin: bytes = b"", code: int = 0) -> Result:
    options = ["transcribe", *map(str, arguments)]
    result = CliRunner().invoke(app, options, input=stdin, env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"), "base", times=True)


@pytest.fixture(scope="module")
def expected(model: Path) -> Iterator[Any]:
    """As the command asks where nothing is said."""
    with LLM(str(model)) as llm:
        yield lambda seed, seconds: llm.transcribe((sound(seed, seconds), RATE), semantics="openai", seed=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings of the same name, one that is broken, and files that are none."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "some"
    (root / "old").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("one.wav", "old/one.wav", ".hidden/two.wav"):
        (root / name).write_bytes(wav(sound(1, 0.7), RATE))
    (root / "one.flac").write_bytes(encoded(sound(2, 2.2), RATE, "flac", "flac"))
    (root / "broken.mp3").write_bytes(b"no audio")
    (root / "notes.md").write_text("notes")
    return root


def test_one_recording_goes_to_standard_output(model: Path, folder: Path, expected: Any) -> None:
    file = folder / "one.flac"
    before = set(folder.rglob("*"))
    shown = run(file, "--model", model, "-p", "seed=1").stdout
    assert shown == written(expected(2, 2.2), "txt")
    shown = run("-", "--model", model, "-p", "seed=1", "--format", "json", stdin=file.read_bytes()).stdout
    assert json.loads(shown)["duration"] == pytest.approx(2.2)
    assert json.loads(shown)["text"] == expected(2, 2.2).text
    assert set(folder.rglob("*")) == before


def test_a_folder_and_again(model: Path, folder: Path, tmp_path: Path, expected: Any) -> None:
    out = tmp_path / "out"
    formats = ["--format", "srt", "--format", "jsonl"]
    command: list[str | Path] = [folder, "--model", model, "-d", out, *formats, "-p", "seed=1"]
    said = run(*command, code=1)
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.*")) == [
        "old/one.jsonl", "old/one.srt", "one.flac.jsonl", "one.flac.srt", "one.wav.jsonl", "one.wav.srt",
    ]  # fmt: skip
    assert (out / "one.flac.srt").read_text() == written(expected(2, 2.2), "srt")
    assert texts(out / "old/one.jsonl") == [one.text for one in expected(1, 0.7).segments]
    assert "notes.md: no recording by its name" in said.stderr
    assert "hidden" not in said.stderr
    assert said.stderr.count(f"{folder / 'broken.mp3'}: cannot be decoded") == 1
    assert "3 transcribed, 1 failed." in said.stderr

    (out / "old/one.srt").write_text("corrected by hand")
    (out / "old/one.jsonl").unlink()
    (folder / "broken.mp3").write_bytes((folder / "one.flac").read_bytes())
    said = run(*command)
    assert "2 of 4 transcribed already" in said.stderr
    assert (out / "old/one.srt").read_text() == "corrected by hand"
    assert texts(out / "old/one.jsonl")
    assert (out / "broken.srt").read_text() == (out / "one.flac.srt").read_text()
    assert "4 of 4" in run(*command).stderr
    run(*command, "--overwrite")
    assert (out / "old/one.srt").read_text() == written(expected(1, 0.7), "srt")
    assert not list(out.rglob(".*"))


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_next_to_the_recordings_and_told_from_them_the_next_time(model: Path, folder: Path) -> None:
    (folder / "broken.mp3").unlink()
    run(folder, folder / "one.wav", "--model", model, "--format", "json")
    assert {path.name for path in folder.glob("*.json")} == {"one.wav.json", "one.flac.json"}
    assert (folder / "old" / "one.json").exists()
    said = run(folder, "--model", model, "--format", "json").stderr
    assert "3 of 3" in said
    assert "one.json" not in said
    assert "notes.md" in said


def test_every_format_is_an_option() -> None:
    assert tuple(Format) == FORMATS


def test_output_says_the_format(model: Path, folder: Path) -> None:
    file = folder / "one.wav"
    run(file, "--model", model, "-o", folder / "a.vtt")
    assert (folder / "a.vtt").read_text().startswith("WEBVTT")
    run(file, "--model", model, "-o", folder / "a.srt", "--format", "txt")
    assert "-->" not in (folder / "a.srt").read_text()


def test_options_are_the_parameters(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    server = _Server(monkeypatch)
    run(folder / "one.wav", "--server", "somewhere:9000")
    assert server.asked == [{"semantics": "openai"}]
    run(
        folder / "one.wav", "--server", "somewhere:9000", "--language", "fr", "--task", "translate",
        "--prompt", "Names", "--temperature", "0", "--temperature", "0.5", "--num-beams", "2",
        "--best-of", "3", "--semantics", "transformers", "-p", "logprob_threshold=-Infinity",
        "--timeout", "7",
    )  # fmt: skip
    assert server.asked[1] == {
        "language": "fr", "task": "translate", "prompt": "Names", "temperature": [0.0, 0.5], "num_beams": 2,
        "best_of": 3, "semantics": "transformers", "logprob_threshold": float("-inf"),
    }  # fmt: skip
    assert server.options[-1] == {"timeout_s": 7}
    run(folder / "one.wav", "--server", "somewhere:9000", "--temperature", "0.5")
    assert server.asked[2]["temperature"] == 0.5


class _Server:
    """In place of `Client`: answers all recordings of this length, unless told otherwise."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception | None = None,
        target: str = "somewhere:9000",
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.options: list[Any] = []
        self.most, self._running, self._lock = 0, 0, threading.Lock()
        server = self

        class Client:
            def __init__(self, named: str, **_: Any) -> None:
                assert named == target

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None: ...

            def close(self) -> None: ...

            def stream_transcription(self, audio: Any, *, options: Any = None, **asked: Any) -> Any:
                with server._lock:
                    server.asked.append(asked)
                    server.options.append(options)
                    server._running += 1
                    server.most = max(server.most, server._running)
                if Path(audio).name == "broken.mp3":
                    raise error or InvalidRequest("cannot be decoded", field="audio")
                yield TranscriptionDelta("Hello.", SPOKEN.segments, 1.5)
                with server._lock:
                    server._running -= 1
                yield TranscriptionDelta("", [], 2.0, SPOKEN)

        monkeypatch.setattr("tandem.client.Client", Client)


def test_a_server_has_several_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.wav").write_bytes(wav(sound(1, 0.1), RATE))
    (tmp_path / "broken.mp3").touch()
    server = _Server(monkeypatch)
    said = run(tmp_path, "--server", "somewhere:9000", "-d", tmp_path / "out", code=1)
    assert len(list((tmp_path / "out").glob("*.txt"))) == 30
    assert "broken.mp3: cannot be decoded" in said.stderr
    assert 1 <= server.most <= 8


@pytest.mark.parametrize(
    "error", [Unavailable("nobody there"), InvalidRequest("has no such language", field="params.language")]
)
def test_what_is_everybodys_error_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, folder: Path, error: Exception
) -> None:
    _Server(monkeypatch, error)
    said = run(folder, "--server", "somewhere:9000", code=1).stderr
    assert str(error).removeprefix("params.") in said
    assert "params" not in said
    assert "broken.mp3" not in said


def test_a_full_server_is_asked_again(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("tandem.cli.speech.transcription_steps._PAUSE_S", 0.01)
    server = _Server(monkeypatch, Overloaded("full"))
    said = run(folder / "broken.mp3", "--server", "somewhere:9000", "--timeout", "0.2", code=1).stderr
    assert "Overloaded full" in said
    assert len(server.asked) > 2


def test_an_interruption_leaves_what_is_done(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written_files: list[Path] = []

    def write(path: Path, content: str) -> None:
        if written_files:
            raise KeyboardInterrupt
        written_files.append(path)
        path.write_text(content)

    (folder / "broken.mp3").unlink()
    monkeypatch.setattr("tandem.cli.speech.transcribe.write", write)
    said = run(folder, "--model", model, code=130)
    assert "Interrupted after 1 of 3" in said.stderr
    monkeypatch.undo()
    assert "1 of 3 transcribed already" in run(folder, "--model", model).stderr


def test_what_cannot_be_is_said_before_a_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    file = folder / "one.wav"
    for arguments, message in (
        ([file], "give a model or a server"),
        ([file, "--model", "m", "--server", "s"], "give a model or a server"),
        (["nowhere.wav", "--model", "m"], "there is no nowhere.wav"),
        ([file, folder / "one.flac", "--model", "m", "-o", "x"], "is for one recording"),
        ([folder, "--model", "m", "-o", "x"], "is for one recording"),
        ([file, "--model", "m", "--format", "srt", "--format", "txt"], "one at a time"),
        ([folder, "--model", "m", "-d", file], "is no folder"),
        ([file, "--model", "m", "--format", "doc"], "'doc'"),
    ):
        assert message in run(*arguments, code=2).stderr
    for option, field in (("num_beam=2", "num_beam"), ("temperature=-1", "temperature")):
        assert f"{field}:" in run(file, "--model", "m", "-p", option, code=1).stderr
    (tmp_path / "empty").mkdir()
    assert "no recording" in run(tmp_path / "empty", "--model", "m").stderr


def test_pipes_and_folders_that_cannot_be_read(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(folder / "pipe.wav")
    assert "is no file" in run(folder / "pipe.wav", "--model", model, code=1).stderr

    def scandir(path: object) -> object:
        raise PermissionError(f"not you: {path}")

    monkeypatch.setattr("os.scandir", scandir)
    assert "cannot be read: not you" in run(folder, "--model", model, code=1).stderr


def test_only_speech_models_transcribe(folder: Path) -> None:
    assert "is no speech model" in run(folder / "one.wav", "--model", "quickstart", code=1).stderr


def test_each_file_is_named_once(tmp_path: Path) -> None:
    for name in ("x/a.wav", "b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = named([str(tmp_path / "x"), str(tmp_path), str(tmp_path / "x" / ".." / "b.wav"), "-", "-"])
    assert [one.name for one in found.recordings] == [
        str(tmp_path / "x" / "a.wav"), str(tmp_path / "b.wav"), "standard input",
    ]  # fmt: skip


NAMES = st.sampled_from(["a", "A", "b", "a.wav", "b.wav.mp3", "c"])
FILES = st.builds(
    lambda folders, stem, end: Path("/talks", *folders, stem + end),
    st.lists(st.sampled_from(["x", "y", "a"]), max_size=2), NAMES,
    st.sampled_from([".wav", ".mp3", ".WAV", ""]),
)  # fmt: skip


@given(st.lists(FILES, unique_by=lambda path: str(path).casefold(), max_size=8), st.booleans(), st.booleans())
def test_no_two_transcripts_are_one_file(paths: list[Path], within: bool, folder: bool) -> None:
    """Nor does one replace another where a file system takes small and capital letters for the same."""
    recordings = [
        Recording(path, path.relative_to("/talks") if folder else Path(path.name)) for path in paths
    ] + [Recording(None, Path("stdin"))]
    out = Path("/out") if within else None
    found = destinations(recordings, out)
    assert len({str(path.absolute()).casefold() for path in found}) == len(recordings)
    for path, end in zip(paths, found, strict=False):
        assert end.name.startswith(path.stem)
        assert end.is_relative_to(out or path.parent)
        alone = destinations([Recording(path, Path(path.name))], out)
        assert alone == [(out or path.parent) / path.stem]


def test_show_says_what_a_speech_model_hears(model: Path, tmp_path: Path) -> None:
    def shown(folder: Path, *more: str) -> str:
        result = CliRunner().invoke(app, ["show", str(folder), *more], env={"COLUMNS": "160"})
        assert result.exit_code == 0, result.output
        return result.stdout

    speech = json.loads(shown(model, "--json"))["speech"]
    assert speech["languages"] == {"de": "german", "en": "english", "fr": "french"}
    assert speech["tasks"] == ["transcribe", "translate"]
    assert (speech["timestamps"], speech["window_s"], speech["mel_bins"]) == (True, 1, 80)
    assert speech["defaults"]["condition_on_prev_tokens"] is False
    table = shown(model)
    for fact in ("3: german (de), english (en), french (fr)", "transcribe, translate", "1 s, 80 mel bins"):
        assert fact in table
    english = make_whisper(tmp_path, "english", times=True)
    speech = json.loads(shown(english, "--json"))["speech"]
    assert (speech["languages"], speech["tasks"]) == ({"en": "english"}, ["transcribe"])
    assert json.loads(shown(Path("quickstart"), "--json"))["speech"] is None


def test_the_documented_examples(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of docs/run.md, as they stand there but for the model."""
    section = (ROOT / "docs" / "run.md").read_text().partition("## Transcribe recordings")[2]
    [shell] = re.findall(r"^```sh\n(.*?)^```$", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    [python] = re.findall(r"^```python\n(.*?)^```$", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    server = _Server(monkeypatch, target="localhost:9000")
    for name in ("interview.mp3", "one.flac", "two.flac", "three.m4a"):
        Path(name).write_bytes((folder / "one.flac").read_bytes())
    (folder / "broken.mp3").unlink()
    folder.rename("talks")
    commands = [shlex.split(line, comments=True) for line in shell.splitlines()]
    shown = [
        run(*(str(model) if word == "openai/whisper-base" else word.replace("*", "three") for word in words))
        for _, _, *words in commands
    ]
    assert shown[0].stdout
    assert sorted(path.name for path in Path("transcripts").rglob("*.srt")) == [
        "one.flac.srt", "one.srt", "one.wav.srt",
    ]  # fmt: skip
    assert json.loads(shown[2].stdout)["text"] == "Hello."
    assert server.asked[0]["timestamps"] == "word"
    capsys.readouterr()
    exec(python.replace("openai/whisper-base", str(model)), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Hello."
    assert "'timestamp': (" in lines[-2]
