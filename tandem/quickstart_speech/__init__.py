"""The embedded speech model: a small Whisper for short clips of English. See README.md here."""

from pathlib import Path

PATH = Path(__file__).parent
CLIP = PATH / "clip.flac"  # of a sentence and a speaker that no training has
