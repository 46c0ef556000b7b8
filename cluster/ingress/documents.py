"""Texts of any length, answered segment by segment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Unpack

from tandem.cluster.ingress.call import Call
from tandem.errors import DeadlineExceeded, Overloaded
from tandem.inputs import TaskOptions
from tandem.outputs import RequestOutput
from tandem.params import Params

# Sequences of one call that are at the router together: others' requests wait behind no more of a long text.
_IN_FLIGHT: Final = 64
_PAUSE_S: Final = 0.2  # before the next segment is tried again where there is no room for it


async def answer_segments(
    call: Call,
    segments: Sequence[str],
    params: Sequence[Params],
    *,
    timeout_s: float,
    request_id: str | None = None,
    **options: Unpack[TaskOptions],
) -> list[list[RequestOutput]]:
    """The whole answers to any number of segments, each a prompt: for every one of them an answer with each
    of the `params`. Equal segments are answered once. `timeout_s` is what all of it may take.

    Raises what `Call.prepare` and `Call.generate` raise, Overloaded only before there is an answer; and
    DeadlineExceeded rather than answers that are cut off.
    """
    answers: dict[str, list[RequestOutput]] = {}
    distinct = dict.fromkeys(segments)
    left = enumerate(distinct)
    late = f"not all of the {len(distinct)} segments were answered in time: send less at a time"

    async def work() -> None:
        for number, segment in left:
            while True:
                try:
                    prepared = [
                        (await call.prepare([segment], one, request_id=request_id, **options))[0]
                        for one in params
                    ]
                    outputs = await call.generate(prepared, first=number * len(params))
                    break
                except Overloaded:
                    if not answers:
                        raise
                    await asyncio.sleep(_PAUSE_S)
            if any(sample.finish_reason == "deadline" for one in outputs for sample in one.outputs):
                raise DeadlineExceeded(late)
            answers[segment] = outputs

    each = sum(one.outputs for one in params)
    workers = [asyncio.create_task(work()) for _ in range(min(len(distinct), max(1, _IN_FLIGHT // each)))]
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*workers)
    except TimeoutError:
        raise DeadlineExceeded(late) from None
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [answers[segment] for segment in segments]
