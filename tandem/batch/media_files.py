"""Which files of a folder are recordings or images, by their names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tandem.errors import InvalidRequest
from tandem.inputs import MODALITIES, Modality

_NAMES: Final[Mapping[Modality, str]] = {
    # Containers with an audio track, films among them.
    "audio": (
        "3g2,3gp,aac,ac3,aif,aifc,aiff,amr,asf,au,avi,caf,flac,flv,m4a,m4b,m4v,mj2,mka,mkv,mov,mp2,mp3,mp4,mpeg,"
        "mpg,mts,oga,ogg,ogv,opus,snd,spx,ts,w64,wav,wave,weba,webm,wma,wmv"
    ),
    "image": "bmp,dib,gif,jfif,jpe,jpeg,jpg,png,tif,tiff,webp",
}
_OF_SUFFIX: Final[Mapping[str, Modality]] = {
    f".{name}": modality for modality in MODALITIES for name in _NAMES[modality].split(",")
}


class FolderFiles(NamedTuple):
    """A folder's files and those of the folders in it, sorted. Hidden ones are in neither list."""

    found: list[Path]  # of the modality that is asked for
    others: list[Path]


def modality_of(path: Path) -> Modality | None:
    """What a file is by its name; None: neither."""
    return _OF_SUFFIX.get(path.suffix.lower())


def files_in(folder: Path, modality: Modality) -> FolderFiles:
    """Folders that are links are not entered, or they could go round in a circle. Raises InvalidRequest where
    one cannot be read."""

    def refuse(error: OSError) -> None:
        raise InvalidRequest(f"cannot be read: {error}", field=str(folder))

    paths: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    paths.sort()
    found = [path for path in paths if modality_of(path) == modality]
    return FolderFiles(found, [path for path in paths if modality_of(path) != modality])
