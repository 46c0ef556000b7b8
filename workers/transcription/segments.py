"""A window's tokens, split at its times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

TIME_S: Final = 0.02  # from one time token to the next
FRAMES_A_TIME: Final = 2
_FRAME_S: Final = TIME_S / FRAMES_A_TIME


class Piece(NamedTuple):
    """One segment of a window."""

    start_s: float  # in the recording
    end_s: float
    token_ids: list[int]


class Split(NamedTuple):
    pieces: list[Piece]
    advance: int  # frames from this window's beginning to the next one's


def split(ids: Sequence[int], seek: int, frames: int, first_time_id: int, *, openai: bool) -> Split:
    """`_retrieve_segment` of transformers, or the same of openai-whisper.

    Args:
        ids: EOS excluded.
        seek, frames: where the window begins, and how much of it is the recording.
        openai: whose way. transformers puts both of two times that end the window's last whole segment into
            that segment, and rounds the end of a window without times, in float32.
    """
    times = [token >= first_time_id for token in ids]
    offset_s = seek * TIME_S / FRAMES_A_TIME
    cuts = [at for at in range(1, len(ids)) if times[at - 1] and times[at]]
    if not cuts:
        steps = frames / FRAMES_A_TIME
        if not openai:
            steps = int(np.float32(frames) * np.float32(_FRAME_S) / np.float32(TIME_S))
        last = next((token for token in reversed(ids) if token >= first_time_id), first_time_id)
        if last != first_time_id:
            steps = last - first_time_id
        return Split([Piece(offset_s, offset_s + steps * TIME_S, list(ids))], frames)
    single = times[-2:] == [False, True]
    if single:  # nothing is said after the last time
        cuts.append(len(ids))
    pieces, start = [], 0
    for cut in cuts:
        begin, end = (token - first_time_id for token in (ids[start], ids[cut - 1]))
        pieces.append(Piece(offset_s + begin * TIME_S, offset_s + end * TIME_S, list(ids[start:cut])))
        start = cut
    if single:
        return Split(pieces, frames)
    if not openai:
        pieces[-1].token_ids.append(ids[cuts[-1]])
    # What follows the last whole segment is decoded anew, from where that ends.
    return Split(pieces, (ids[cuts[-1] - 1] - first_time_id) * FRAMES_A_TIME)
