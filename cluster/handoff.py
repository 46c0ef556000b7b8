"""The one way tensors travel between workers: an encoder's output, by reference, to the decoders.

An encoder *returns* the packed hidden states of a batch, so the router that asked owns them and they
outlive the encoder's process. The router hands on references with a row range, as soon as an encoder has
the input; every rank of a decoder waits for the object and reads it from its own node's store, without a
copy. (What is small Ray keeps with its owner, and sends it along when it is there.)
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

SCHEMA: Final = 1  # of PackedHidden; the two ends may run different versions during an update

# NumPy has no bfloat16, so it travels as the 16-bit integers with the same bits.
_CARRIERS: Final = {torch.bfloat16: torch.uint16, torch.float32: torch.float32}
_DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}

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
    rows: npt.NDArray[Any]  # [tokens, d_model]


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
    carrier = _CARRIERS[host.dtype]
    return PackedHidden(
        schema=SCHEMA, dtype=str(host.dtype).removeprefix("torch."), rows=host.view(carrier).numpy()
    )


def unpack(packed: PackedHidden) -> torch.Tensor:
    """[tokens, d_model] on the CPU, sharing memory with `packed`: not to be written to.

    Raises HiddenStatesLost for another version's layout.
    """
    if packed["schema"] != SCHEMA:
        raise HiddenStatesLost(
            f"the encoder sends schema {packed['schema']}, this decoder reads {SCHEMA}: mid-update"
        )
    return torch.from_numpy(packed["rows"]).view(_DTYPES[packed["dtype"]])


async def fetch(reference: ray.ObjectRef[PackedHidden], timeout_s: float) -> torch.Tensor:
    """A batch's hidden states [tokens, d_model], in this node's store: awaited in the event loop, so that
    the engine's thread need not wait. The tensor pins the object there.

    Raises HiddenStatesLost where it cannot be had, or not within `timeout_s`.
    """
    try:
        return unpack(await asyncio.wait_for(asyncio.wrap_future(reference.future()), timeout_s))
    except (RayError, TimeoutError) as error:
        raise lost(error) from None


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
