"""The one way tensors travel between workers: an encoder's output, by reference, to the decoders.

An encoder *returns* the packed hidden states of a batch, so the router that asked owns them and they
outlive the encoder's process. The router passes references with a row range on to the decoders. Where a
decoder could begin at once, it gets the reference while the encoder is still at work. Every rank of a decoder
reads the object from its own node's store, without a copy. (Small results Ray keeps with their owner, and
sends when they are made.)
"""

from __future__ import annotations

import asyncio
import warnings
from dataclasses import dataclass
from typing import Any, Final, TypedDict

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from tandem.errors import HiddenStatesLost, TandemError
from tandem.workers.request import MediaCounts

# The version of PackedHidden and of messages.py: during an update the two ends may run different code.
SCHEMA: Final = 6
SMALL_BYTES: Final = 65536  # a batch of at most this size is packed as bytes; Ray stores from 100 KiB on
TRANSFER_S: Final = 30.0  # a made object that has not arrived after it, or at most twice as long, is lost

# NumPy has no bfloat16, so it travels as the 16-bit integers with the same bits.
_CARRIERS: Final = {torch.bfloat16: torch.uint16, torch.float32: torch.float32}
_DTYPES: Final = {"bfloat16": (torch.bfloat16, np.uint16), "float32": (torch.float32, np.float32)}

# The store's memory is read-only, which torch cannot express: it warns, once in a process. Nothing here
# writes to it, so the warning is spent at import, before any thread runs.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"read-only", dtype=np.uint8))


class PackedHidden(TypedDict):
    """The hidden states of a batch of inputs, one input after the other. A plain dict, so that any version of
    the code can read at least `schema`."""

    schema: int
    dtype: str  # the hidden states': float32, or bfloat16 (`rows` are then uint16)
    width: int  # d_model
    # [tokens, d_model]; up to SMALL_BYTES as bytes, because pickling a small array takes longer.
    rows: npt.NDArray[Any] | bytes


class BatchSummary(TypedDict):
    """What an encoder reports of a batch. The router reads it, and never the hidden states."""

    tokens: int
    nbytes: int  # the hidden states' size
    seconds: float  # how long the forward took
    # Inputs whose media cannot be decoded, by their number in the batch. Their rows are zeros.
    refused: dict[int, TandemError]
    # The batch's items; none for a decoder's, which `EngineStats` counts.
    media: MediaCounts


@dataclass(frozen=True, slots=True)
class HiddenSlice:
    """One input's rows of a packed batch. The reference is nested so that Ray never fetches it on the way;
    whoever holds a slice keeps the whole batch in the store."""

    reference: ray.ObjectRef[PackedHidden]
    start: int
    stop: int


def pack(hidden: torch.Tensor) -> PackedHidden:
    """Packs hidden states [tokens, d_model], float32 or bfloat16, on the CPU, where the worker that made them
    has put them through pinned memory."""
    host = hidden.detach().contiguous()
    rows = host.view(_CARRIERS[host.dtype]).numpy()
    return PackedHidden(
        schema=SCHEMA,
        dtype=str(host.dtype).removeprefix("torch."),
        width=rows.shape[1],
        rows=rows.tobytes() if rows.nbytes <= SMALL_BYTES else rows,
    )


def unpack(packed: PackedHidden) -> torch.Tensor:
    """[tokens, d_model] on the CPU, sharing memory with `packed`: not to be written to.

    Raises HiddenStatesLost for another version's layout.
    """
    if packed["schema"] != SCHEMA:
        raise HiddenStatesLost(
            f"the encoder sends schema {packed['schema']}, this decoder reads {SCHEMA}: mid-update"
        )
    dtype, carrier = _DTYPES[packed["dtype"]]
    rows = packed["rows"]
    if isinstance(rows, bytes):
        rows = np.frombuffer(rows, carrier).reshape(-1, packed["width"])
    return torch.from_numpy(rows).view(dtype)


async def fetch(reference: ray.ObjectRef[PackedHidden]) -> torch.Tensor:
    """A batch's hidden states [tokens, d_model], in this node's store, where the tensor pins them. The event
    loop awaits it, so that the engine's thread need not wait. An encoder may take any time; once it is done,
    the object has to arrive: see TRANSFER_S.

    Raises HiddenStatesLost where the object cannot be had.
    """
    arriving = asyncio.wrap_future(reference.future())
    try:
        made = False
        while not (await asyncio.wait([arriving], timeout=TRANSFER_S))[0]:
            if made:
                raise lost(TimeoutError())
            made = is_made(reference)
        return unpack(arriving.result())
    except RayError as error:
        raise lost(error) from None
    finally:
        arriving.cancel()


def is_made(reference: ray.ObjectRef[PackedHidden]) -> bool:
    """Whether the object exists on any node, as far as this process knows. Returns at once."""
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


class HiddenLoader:
    """One input's hidden states on a decoder rank: what `EncoderInput.hidden` is in a cluster.

    `handle` names the input among the ranks of a group: rank 0 sends it, each follower looks up its own
    loader. `fetched` is the input's whole batch, see `fetch`. The batch stays pinned in the node's store
    until `let_go`, because hidden states are read again after a preemption, and a step must not wait for
    them: it would hold up every request, and all ranks. They are small compared with the pages made of them,
    which hold the K and V of every layer.
    """

    __slots__ = ("_rows", "handle")

    def __init__(self, handle: int, where: HiddenSlice, fetched: torch.Tensor) -> None:
        self.handle = handle
        self._rows: torch.Tensor | None = fetched[where.start : where.stop]

    def __call__(self) -> torch.Tensor:
        """[length, d_model], read-only. Raises HiddenStatesLost after `let_go`."""
        if self._rows is None:
            raise HiddenStatesLost("read after its request has ended")
        return self._rows

    def let_go(self) -> None:
        """Unpins the batch. Call it when the request has ended."""
        self._rows = None


def lost(error: BaseException) -> HiddenStatesLost:
    """The error for every way of not getting an object: its owner died, its node died, its encoder failed.
    The remedy is the same: encode again."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return HiddenStatesLost(f"the encoder's output is gone ({type(cause).__name__})")
