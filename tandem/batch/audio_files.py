"""Which files of a folder are recordings, by their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from tandem.errors import InvalidRequest

# Containers with an audio track, films among them.
_NAMES: Final = (
    "3g2,3gp,aac,ac3,aif,aifc,aiff,amr,asf,au,avi,caf,flac,flv,m4a,m4b,m4v,mj2,mka,mkv,mov,mp2,mp3,mp4,mpeg,mpg,"
    "mts,oga,ogg,ogv,opus,snd,spx,ts,w64,wav,wave,weba,webm,wma,wmv"
)
SUFFIXES: Final = frozenset(f".{name}" for name in _NAMES.split(","))


class FolderFiles(NamedTuple):
    """A folder's files and those of the folders in it, sorted. Hidden ones are in neither list."""

    recordings: list[Path]
    others: list[Path]


def is_recording(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def files_in(folder: Path) -> FolderFiles:
    """Folders that are links are not entered, or they could go round in a circle. Raises InvalidRequest where
    one cannot be read."""

    def refuse(error: OSError) -> None:
        raise InvalidRequest(f"cannot be read: {error}", field=str(folder))

    paths: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    paths.sort()
    found = [path for path in paths if is_recording(path)]
    return FolderFiles(found, [path for path in paths if not is_recording(path)])
