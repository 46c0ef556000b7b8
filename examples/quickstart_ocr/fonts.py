"""The fonts that lines are set in: free ones, which Python packages bring.

pip install rendercv-fonts pymupdf-fonts matplotlib
"""

from __future__ import annotations

import io
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from PIL import ImageFont

# Under the SIL Open Font License but where said.
_RENDERCV: Final = (
    "EB Garamond", "Gentium Book Plus", "Lato", "Mukta", "Noto Sans", "Open Sans", "Open Sauce Sans",
    "Poppins", "Raleway",
    "Roboto",  # Apache, version 2.0
    "Source Sans 3",
    "Ubuntu",  # Ubuntu Font Licence
    "XCharter",  # Bitstream's, which allows any use
)  # fmt: skip
# By the names that pymupdf-fonts gives them.
_PYMUPDF: Final = {
    "Cascadia Mono": ("cascadia", "cascadiab", "cascadiai", "cascadiabi"),
    "FiraGO": ("figo", "figbo", "figit", "figbi"),
    "Fira Mono": ("fimo", "fimbo"),
    "Space Mono": ("spacemo", "spacembo", "spacemit", "spacembi"),
    "Ubuntu Mono": ("ubuntm", "ubuntmbo", "ubuntmit", "ubuntmbi"),  # Ubuntu Font Licence
}
# DejaVu's licence allows any use.
_MATPLOTLIB: Final = {
    "DejaVu Sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    "DejaVu Sans Mono": (
        "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    ),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    "STIX": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
}  # fmt: skip
# Families that the training never sees.
HELD_OUT: Final = ("Lato", "Source Sans 3", "Space Mono", "XCharter")


class Face(NamedTuple):
    """One font of a family."""

    family: str
    name: str  # of the file, or in the package
    package: str


def faces(*, held_out: bool) -> list[Face]:
    """The fonts of the training, or those that it does not see."""
    return [face for face in _all() if (face.family in HELD_OUT) == held_out]


@cache
def _all() -> tuple[Face, ...]:
    found = [
        Face(family, path.name, "rendercv_fonts")
        for family in _RENDERCV
        for path in sorted((_folder("rendercv_fonts") / family).iterdir())
        if path.suffix in {".ttf", ".otf"} and path.stem.partition("-")[0] == family.replace(" ", "")
    ]
    for package, families in (("pymupdf_fonts", _PYMUPDF), ("matplotlib", _MATPLOTLIB)):
        found += [Face(family, name, package) for family, names in families.items() for name in names]
    return tuple(found)


@cache
def font(face: Face, size: int) -> ImageFont.FreeTypeFont:
    """size: pixels of an em. Raises ModuleNotFoundError where the package is not installed."""
    file: Path | io.BytesIO
    match face.package:
        case "rendercv_fonts":
            file = _folder(face.package) / face.family / face.name
        case "matplotlib":
            file = _folder(face.package) / "mpl-data/fonts/ttf" / f"{face.name}.ttf"
        case _:
            file = io.BytesIO(import_module(face.package).myfont(face.name))
    # The basic layout is everywhere, and says where each character is.
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no {package}: pip install {package.replace('_', '-')}")
    return Path(spec.origin).parent
