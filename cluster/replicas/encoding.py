"""A batch of encoder inputs on the worker that encodes them, an encoder's or a colocated decoder's: media to
features, and hidden states to what the router gets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import torch

from tandem.cluster.handoff import BatchSummary, PackedHidden, pack
from tandem.errors import InternalError, InvalidRequest, TandemError
from tandem.workers.request import EncoderInput, MediaCounts

logger = logging.getLogger(__name__)

Prepared = list[EncoderInput | TandemError]  # inputs with the features of their media, or why one has none


async def prepare_inputs(
    inputs: Sequence[EncoderInput], prepare: Callable[[EncoderInput], EncoderInput], threads: Executor
) -> Prepared:
    """Decodes the inputs' media with `prepare`, see `Encoder.prepare`, in threads."""
    if not any(each.media for each in inputs):
        return list(inputs)

    def one(encoder_input: EncoderInput) -> EncoderInput | TandemError:
        try:
            return prepare(encoder_input)
        except InvalidRequest as error:
            return error
        except Exception:  # a fault of ours: the others of the batch go on
            logger.exception("media of input %s were not decoded", encoder_input.key)
            return InternalError("media were not decoded")

    loop = asyncio.get_running_loop()
    return await asyncio.gather(*(loop.run_in_executor(threads, one, each) for each in inputs))


def accepted(prepared: Prepared) -> list[EncoderInput]:
    """The inputs to encode."""
    return [each for each in prepared if isinstance(each, EncoderInput)]


def packed_batch(
    inputs: Sequence[EncoderInput],
    prepared: Prepared,
    hidden: torch.Tensor,
    started: float,
    media: MediaCounts = MediaCounts(),
) -> tuple[PackedHidden, BatchSummary]:
    """Hidden states [tokens, d_model] of the accepted inputs as those of all: a refused one's are zeros.
    `started`: when their encoding did, on the monotonic clock. `media`: see `BatchSummary`."""
    refused = {number: each for number, each in enumerate(prepared) if isinstance(each, TandemError)}
    if refused:
        rows = iter(hidden.split([len(each.token_ids) for each in accepted(prepared)]))
        hidden = torch.cat(
            [
                hidden.new_zeros(len(each.token_ids), hidden.shape[1]) if n in refused else next(rows)
                for n, each in enumerate(inputs)
            ]
        )
    packed = pack(hidden)
    seconds = time.monotonic() - started
    return packed, BatchSummary(
        tokens=len(hidden), nbytes=hidden.nbytes, seconds=seconds, refused=refused, media=media
    )
