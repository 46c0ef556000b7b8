"""The embedded default model: a small T5, English to French and German. See README.md here."""

from pathlib import Path

PATH = Path(__file__).parent
