"""The embedded reader: a small TrOCR for pictures of one line of English. See README.md here."""

from pathlib import Path

PATH = Path(__file__).parent
LINE = PATH / "line.png"  # of a text and a font that no training has
