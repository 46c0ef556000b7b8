"""The one way tensors travel between workers: an encoder's output, by reference, to the decoders.

An encoder *returns* the packed hidden states of a batch, so the router that asked owns them and they
outlive the encoder's process. The router hands on references with a row range, as soon as an encoder has
been asked where a decoder could begin at once; every rank of a decoder reads the object from its own
node's store, without a copy. (What is small Ray keeps with its owner, and sends when it is there.)
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

from tandem.errors import HiddenStatesLost

# Of PackedHidden and of what messages.py has; the two ends may run different versions during an update.
SCHEMA: Final = 3
SMALL_BYTES: Final = 65536  # of a batch; Ray keeps results below 100 KiB with their owner
TRANSFER_S: Final = 30.0  # from another node's store, at least; beyond twice as much it counts as lost

# NumPy has no bfloat16, so it travels as the 16-bit integers with the same bits.
_CARRIERS: Final = {torch.bfloat16: torch.uint16, torch.float32: torch.float32}
_DTYPES: Final = {"bfloat16": (torch.bfloat16, np.uint16), "float32": (torch.float32, np.float32)}

# The store's memory is read-only, which torch cannot express: it warns, once in a process. We never
# write to it, so have the warning done with here, before any thread runs.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"read-only", dtype=np.uint8))


class PackedHidden(TypedDict):
    """Hidden states of a batch of inputs, one after the other. A plain dict, so that any version of the
    code can read at least `schema`."""

    schema: int
    dtype: str  # of the hidden states: float32, or bfloat16 (`rows` are then uint16)
    width: int  # d_model
    # [tokens, d_model], or at most SMALL_BYTES of it as bytes: pickling an array takes longer than they do.
    rows: npt.NDArray[Any] | bytes


class BatchSummary(TypedDict):
    """What an encoder says about a batch beside its hidden states: small, so the router reads it."""

    tokens: int
    nbytes: int  # of the hidden states
    seconds: float  # of the forward


@dataclass(frozen=True, slots=True)
class HiddenSlice:
    """One input's rows of a packed batch. The reference is nested here so that Ray never fetches it on
    the way; whoever holds this keeps the whole batch in the store."""

    reference: ray.ObjectRef[PackedHidden]
    start: int
    stop: int


def pack(hidden: torch.Tensor) -> PackedHidden:
    """[tokens, d_model] on any device, float32 or bfloat16."""
    host = hidden.detach().to("cpu").contiguous()
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
    """A batch's hidden states [tokens, d_model], in this node's store: awaited in the event loop, so that
    the engine's thread need not wait. The tensor pins the object there. However long an encoder takes is
    waited for; what it is done with has to arrive.

    Raises HiddenStatesLost where it cannot be had.
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
    """Whether the object is anywhere, as far as is known here. Returns at once."""
    return bool(ray.wait([reference], timeout=0, fetch_local=False)[0])


class HiddenLoader:
    """One input's hidden states on a decoder rank: what `EncoderInput.hidden` is in a cluster.

    `handle` names it among the ranks of a group: rank 0 sends it, the followers look up their own.
    `fetched` is its whole batch, see `fetch`. It stays pinned in the node's store until `let_go`, because
    after a preemption it is read again, where nothing may be waited for: a step that waits holds up every
    request, and all ranks. It is small beside the pages made of it, which have K and V of every layer.
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
        """To be called when the request has ended."""
        self._rows = None


def lost(error: BaseException) -> HiddenStatesLost:
    """Every way of not getting the object (its owner died, its node died, its encoder failed) has the
    same remedy: encode again."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return HiddenStatesLost(f"the encoder's output is gone ({type(cause).__name__})")
