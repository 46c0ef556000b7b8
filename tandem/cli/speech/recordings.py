"""Recordings that a command line names, and the files that their transcripts go to."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from tandem.batch.media_files import files_in
from tandem.cli.options import err
from tandem.transcripts import TranscriptFormat

STDIN: Final = "-"
_NAMED: Final = 20  # files that are left out; there may be thousands


@dataclass(frozen=True, slots=True)
class Recording:
    """A file, or standard input."""

    path: Path | None  # None: standard input
    place: Path  # from the folder that was named; the file's name where it was named itself

    @property
    def name(self) -> str:
        return "standard input" if self.path is None else str(self.path)


@dataclass(frozen=True, slots=True)
class Named:
    """What the arguments stand for."""

    recordings: list[Recording]  # each file once
    others: list[Path]  # files of folders that are no recordings by their names
    folders: bool  # some argument is a folder


def named(arguments: Sequence[str]) -> Named:
    """Raises typer.BadParameter for a file that is not there."""
    recordings: dict[str, Recording] = {}
    others: list[Path] = []
    folders = False
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN:
            recordings[STDIN] = Recording(None, Path("stdin"))
        elif path.is_dir():
            folders, files = True, files_in(path, "audio")
            for one in files.found:
                recordings.setdefault(os.path.abspath(one), Recording(one, one.relative_to(path)))
            others += files.others
        elif path.exists():
            recordings.setdefault(os.path.abspath(path), Recording(path, Path(path.name)))
        else:
            raise typer.BadParameter(f"there is no {argument}", param_hint="FILES")
    return Named(list(recordings.values()), others, folders)


def destinations(recordings: Sequence[Recording], folder: Path | None) -> list[Path]:
    """Where each transcript goes, without the end that names its format: next to its recording, or to the
    same place within `folder`.

    The name is the recording's, without its own end where that leaves no two alike; two of one name, from
    different folders, have their folders' names as well.
    """
    paths = [os.path.abspath(one.path) for one in recordings if one.path is not None]
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""

    def choices(one: Recording) -> list[Path]:
        if one.path is None:
            return [(folder or Path()) / one.place]
        if folder is None:
            return [one.path.with_suffix(""), one.path]
        whole = os.path.relpath(os.path.abspath(one.path), common)
        return [folder / one.place.with_suffix(""), folder / one.place, folder / whole]

    each = [choices(one) for one in recordings]
    while True:
        groups = defaultdict(list)
        for number, (path, *_) in enumerate(each):
            groups[os.path.abspath(path).casefold()].append(number)
        alike = [number for group in groups.values() if len(group) > 1 for number in group]
        if not any(len(each[number]) > 1 for number in alike):
            return [path for path, *_ in each]
        for number in alike:
            each[number] = each[number][1:] or each[number]


def output(destination: Path, kind: TranscriptFormat) -> Path:
    return destination.with_name(f"{destination.name}.{kind}")


def say_left_out(others: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Names the files that are no recordings, the command's own outputs aside."""
    own = set(map(os.path.abspath, outputs))
    left = [path for path in others if os.path.abspath(path) not in own]
    for path in left[:_NAMED]:
        err.print(f"{path}: no recording by its name, left out", style="dim")
    if len(left) > _NAMED:
        err.print(f"and {len(left) - _NAMED} more", style="dim")


def write(path: Path, content: str) -> None:
    """Writes a file that is there whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(content, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
