"""`tandem transcribe`: recordings in, transcripts and subtitles out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer
from tqdm import tqdm

from tandem.cli.options import API_KEY_ENV, ApiKeyEnvOption, ParamsOption, ServerOption, err, errors_shown
from tandem.cli.signals import exit_code
from tandem.cli.speech.recordings import (
    Recording,
    destinations,
    named,
    output,
    say_left_out,
    write,
)
from tandem.cli.speech.transcription_steps import Step, transcription_steps
from tandem.errors import OF_ONE_REQUEST, InvalidRequest, TandemError
from tandem.limits import DEFAULT_LIMITS
from tandem.transcripts import FORMATS, TranscriptFormat, written

if TYPE_CHECKING:
    from tandem.transcription import TranscriptionOptions

_FIELD: Final = "audio"  # what errors call a recording
_BAR: Final = (
    "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s of audio "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
)


class Format(StrEnum):
    txt = "txt"
    srt = "srt"
    vtt = "vtt"
    json = "json"
    jsonl = "jsonl"


class Chunking(StrEnum):
    auto = "auto"


class Semantics(StrEnum):
    openai = "openai"
    transformers = "transformers"


def transcribe(
    files: Annotated[
        list[str],
        typer.Argument(help="Recordings, films, folders of them; - is standard input.", show_default=False),
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option(help="A speech model: a folder or a hub id, as for serve.", show_default=False),
    ] = None,
    server: ServerOption = None,
    api_key_env: ApiKeyEnvOption = API_KEY_ENV,
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="txt: a line a segment. srt, vtt: subtitles. json: all there is to know; jsonl: a line of "
            "it a segment. As often as you like.",
            show_default="txt, or as --output ends",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir", "-d", help="Where transcripts go.", show_default="next to each recording"
        ),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where the transcript of one recording goes.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write anew what is there already, instead of passing it.")
    ] = False,
    language: Annotated[
        str | None,
        typer.Option(
            help='The one that is spoken: "en", "english".', show_default="detected, in each recording"
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="transcribe, or translate into English.", show_default="transcribe")
    ] = None,
    chunking_strategy: Annotated[
        Chunking | None,
        typer.Option(
            help="auto: cut at silences, and decode the chunks at once: faster for a long recording.",
            show_default="window after window",
        ),
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="Times of words, in json, jsonl and vtt.")] = False,
    prompt: Annotated[
        str | None,
        typer.Option(help="Text before the recording: its style is followed.", show_default=False),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="Several: the next one is for what the thresholds refuse.", show_default="0, 0.2 … 1"
        ),
    ] = None,
    num_beams: Annotated[
        int | None, typer.Option("--num-beams", "--beam-size", help="5 is more accurate.", show_default="1")
    ] = None,
    best_of: Annotated[
        int | None, typer.Option(help="Samples where the temperature is above 0.", show_default="5")
    ] = None,
    semantics: Annotated[
        Semantics, typer.Option(help="Whose defaults and scales; transformers has no thresholds.")
    ] = Semantics.openai,
    param: ParamsOption = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds a --server may take for a recording.")
    ] = DEFAULT_LIMITS.timeout_s,
) -> None:
    """Transcribe each of FILES, of any length.

    One recording's transcript goes to standard output. That of several, or of
    a folder's, goes to files next to them: talk.mp3 to talk.txt, or to
    talk.mp3.txt where there is a talk.wav, too. What is there already is
    passed, so that the same command goes on after an interruption. Of a folder
    everything is read that is audio or film by its name, and the folders in
    it, hidden files aside. Recordings are decoded together; none changes
    another's answer. One that fails is named on standard error, the others are
    written, and the exit status is 1.

    Defaults and scales are those of openai-whisper's transcribe(): a window
    that repeats itself or is unlikely is decoded again at a higher
    temperature, silence is left out, and windows follow what was said before.
    Its command also searches 5 beams: --num-beams 5.

    [bold]Examples[/bold]

      tandem transcribe --model openai/whisper-base talk.mp3
      tandem transcribe --model openai/whisper-base --format srt --format json films/ -d subtitles
      tandem transcribe --server localhost:9000 --language fr --task translate *.m4a
      tandem transcribe --model openai/whisper-base -p condition_on_prev_tokens=false - < talk.ogg
    """
    with errors_shown():
        if (model is None) == (server is None):
            raise typer.BadParameter("give a model or a server", param_hint="--model")
        asked = _asked(
            param, language=language, task=task, prompt=prompt, temperature=temperature, num_beams=num_beams,
            best_of=best_of, semantics=semantics.value, timestamps="word" if words else None,
            chunking_strategy=chunking_strategy and chunking_strategy.value,
        )  # fmt: skip
        work = _work(files, formats, output_dir, output_file, overwrite=overwrite)
        if not work.recordings:
            return
        with closing(
            transcription_steps(work.recordings, model, server, api_key_env, asked, timeout)
        ) as steps:
            failed = _write_all(work, steps)
    if failed:
        raise typer.Exit(1)


def _asked(param: list[str] | None, **options: Any) -> TranscriptionOptions:
    """The fields of `TranscriptionParams`. Raises InvalidRequest, naming the one at fault."""
    from tandem.batch.records import assignments
    from tandem.transcription import TranscriptionParams

    values = {name: value for name, value in options.items() if value not in (None, [])}
    if temperatures := values.get("temperature"):
        values["temperature"] = temperatures[0] if len(temperatures) == 1 else temperatures
    values |= assignments(param or [])
    TranscriptionParams(**values)
    return cast("TranscriptionOptions", values)


@dataclass(frozen=True, slots=True)
class _Work:
    """The recordings to be transcribed, and where each one's transcripts go."""

    recordings: list[Recording]
    outputs: list[list[tuple[TranscriptFormat, Path | None]]]  # None: standard output


def _work(
    files: Sequence[str],
    formats: Sequence[Format] | None,
    folder: Path | None,
    file: Path | None,
    *,
    overwrite: bool,
) -> _Work:
    given = named(files)
    one = len(files) == 1 and not given.folders
    kinds = [kind for kind in FORMATS if kind in (formats or ())] or ["txt"]
    if folder is not None and folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"{folder} is no folder", param_hint="--output-dir")
    if file is not None:
        if not one or folder is not None:
            raise typer.BadParameter("is for one recording, without --output-dir", param_hint="--output")
        if not formats and (ends := file.suffix.removeprefix(".")) in FORMATS:
            kinds = [kind for kind in FORMATS if kind == ends]
    if one and folder is None and len(kinds) > 1:
        raise typer.BadParameter("one at a time without --output-dir", param_hint="--format")
    if one and folder is None and file is None:
        return _Work(given.recordings, [[(kinds[0], None)]])
    bases = destinations(given.recordings, folder)
    each = [[(kind, file or output(base, kind)) for kind in kinds] for base in bases]
    say_left_out(given.others, [path for paths in each for _, path in paths])
    work, done = _Work([], []), 0
    for recording, paths in zip(given.recordings, each, strict=True):
        missing = [(kind, path) for kind, path in paths if overwrite or not path.exists()]
        if missing:
            work.recordings.append(recording)
            work.outputs.append([*missing])
        done += not missing
    if done:
        err.print(f"{done} of {len(each)} transcribed already; --overwrite transcribes anew.", style="dim")
    elif not each:
        err.print("There is no recording.", style="dim")
    return work


def _write_all(work: _Work, steps: Iterable[Step]) -> int:
    """Writes each transcript when it is there. Returns how many recordings failed.

    Raises what is every recording's error, and typer.Exit where the user interrupts.
    """
    count, done, failed = len(work.recordings), 0, 0
    progress = _Progress([_seconds(one) for one in work.recordings])
    try:
        with closing(progress):
            for number, done_s, answer in steps:
                if answer is None:
                    progress.to(number, done_s)
                    continue
                progress.end(number)
                try:
                    if isinstance(answer, TandemError):
                        raise answer
                    texts = [(written(answer, kind), path) for kind, path in work.outputs[number]]
                    for text, path in texts:
                        if path is None:
                            progress.close()
                            sys.stdout.write(text)
                        else:
                            write(path, text)
                    done += 1
                except OSError as error:
                    failed += 1
                    _name(work.recordings[number], error)
                except TandemError as error:
                    if not isinstance(error, OF_ONE_REQUEST) or error.field not in (None, _FIELD):
                        raise  # it is every recording's
                    failed += 1
                    _name(work.recordings[number], error)
    except KeyboardInterrupt:
        err.print(f"Interrupted after {done} of {count}; the same command goes on from there.")
        raise typer.Exit(exit_code() or 128 + signal.SIGINT) from None
    if count > 1:
        err.print(f"{done} transcribed{f', {failed} failed' if failed else ''}.")
    return failed


def _name(recording: Recording, error: TandemError | OSError) -> None:
    said = error.message if isinstance(error, TandemError) and error.field == _FIELD else str(error)
    err.print(type(error).__name__, style="red", end=" ")
    err.print(f"{recording.name}: {said}")


class _Progress:
    """Seconds of audio that are transcribed, of all; not shown where nobody looks."""

    def __init__(self, seconds: Sequence[float]) -> None:
        """seconds: each recording's by its header, 0 where that says nothing."""
        self._seconds, self._done = list(seconds), [0.0] * len(seconds)
        self._ended, self._total = 0, sum(seconds)
        self._bar = tqdm(
            total=self._total, desc="Transcribing", unit="s", bar_format=_BAR, disable=None, leave=False
        )

    def to(self, number: int, done_s: float) -> None:
        if (beyond := done_s - self._seconds[number]) > 0:  # headers err
            self._seconds[number] = done_s
            self._total += beyond
            self._bar.total = self._total
        self._bar.update(max(0.0, done_s - self._done[number]))
        self._done[number] = max(done_s, self._done[number])

    def end(self, number: int) -> None:
        self._ended += 1
        self._bar.set_postfix_str(f"{self._ended} of {len(self._seconds)} recordings", refresh=False)
        self.to(number, self._seconds[number])

    def close(self) -> None:
        self._bar.close()


def _seconds(recording: Recording) -> float:
    """By its header."""
    from tandem.workers.requests.media.audio_file import check_audio

    if recording.path is None or not recording.path.is_file():  # a pipe can be read once
        return 0.0
    try:
        with recording.path.open("rb") as file:
            return check_audio(file, float("inf")) or 0.0
    except (OSError, InvalidRequest):  # which is said when it is transcribed
        return 0.0
