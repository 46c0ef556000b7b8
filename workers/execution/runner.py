"""Executes steps on one rank: encoder inputs into pages, rows to logits, and on by what was chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tandem import kernels
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution.decode_state import DecodeState
from tandem.workers.execution.packet import (
    BEAM,
    ENCODE_HERE,
    ENCODED_ASYNC,
    FIRST_BEAM,
    SINGLE,
    Ints,
    Packet,
)
from tandem.workers.execution.side_stream import SideStream, Work
from tandem.workers.execution.step_graphs import StepGraphs
from tandem.workers.models.checkpoint import Checkpoint, read_json
from tandem.workers.models.head import TargetScores
from tandem.workers.models.kv_pool import KVPool
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import EncoderStack, load_decoder, load_encoder

_LOG = logging.getLogger(__name__)

GRAPH_ROWS = 256  # of more, drafts among them, a step takes longer than to launch it kernel by kernel

Hidden = Callable[[int], torch.Tensor]  # handle → hidden states [length, d_model], on any device


class Runner:
    """One rank's model, pages and decode state.

    The last slot, cross entry and page are no sequence's. Rows that fill up a batch use them: one position
    each, which sees itself and one position of an encoder input.
    """

    def __init__(self, config: EngineConfig, group: Group) -> None:
        self.config, self.group = config, group
        folder = Path(config.model)
        self.device = config.torch_device(group.rank)
        self.dtype = config.torch_dtype(self.device)
        place = Placement(self.device, self.dtype, group, config.quantization)
        checkpoint = Checkpoint(folder, read_json(folder, "config.json"))
        self.spec = checkpoint.spec
        encodes = config.with_encoder and self.spec.encoder is not None
        self.encoder = load_encoder(checkpoint, place) if encodes else None
        self.decoder = load_decoder(checkpoint, place)
        self._side = SideStream(self.device)
        self._encoding: Work | None = None  # inputs encoded beside the steps
        self._encoding_parts: dict[int, slice] = {}  # cross entry → its rows in their hidden states

        stack = self.spec.decoder
        self.page_size = config.positions_per_page(self.device)
        # Rank 0 hands out page ids for all ranks, whose memory may differ.
        self.num_pages = group.least(config.pages(stack, self.device))
        self.pool = KVPool(
            self.spec.kv_planes, self.num_pages + 1, stack.shared_heads // group.size, self.page_size,
            stack.head_dim, self.device, config.kv_dtype(self.device),
        )  # fmt: skip
        self.draft_tokens = config.draft_tokens if self.spec.drafts_from_source else 0
        self.state = DecodeState(
            config, self.device, self.page_size, self.num_pages, drafts=self.draft_tokens > 0
        )
        # Decode steps that are launched at once, by kind of row; for beams, made when the first ones come.
        self._steps: dict[int, Callable[[Ints], torch.Tensor | None]] = {}
        self._make_step(SINGLE)

    @torch.inference_mode()
    def execute(self, packet: Packet, hidden: Hidden) -> tuple[torch.Tensor | None, TargetScores | None]:
        """Runs a step up to its logits and scores, see `DecoderStack`.

        `finish` completes it. `hidden` gives the hidden states of admissions encoded elsewhere.
        """
        self.state.take(packet)
        if len(packet.admissions):
            self._admit(packet, hidden)
        if not len(packet.rows):
            return None, None
        kind = self._decoding(packet)
        if kind is None:
            if self.state.lacks_beams(packet):
                self.state.make_beams()
                self._make_step(BEAM)
            return self.decoder(self.state.batch(packet), self.pool)
        rows = self.state.rows(packet)
        if kind in self._steps:
            return self._steps[kind](rows), None
        return self._decode(torch.from_numpy(rows).to(self.device, non_blocking=True), kind), None

    @torch.inference_mode()
    def finish(self, packet: Packet, choice: torch.Tensor | None) -> torch.Tensor | None:
        """Makes `Sampled.choice` known to all ranks, and moves the sequences on by it. Rank 0 gives it.

        Returns the numbers of a `DraftOutcome` for each sequence without beams; None without drafts.
        """
        count = packet.choices if choice is None else len(choice)
        if not count:
            return None
        if choice is None:
            choice = torch.empty(count, dtype=torch.int64, device=self.device)
        self.group.broadcast(choice)
        return self.state.advance(packet, choice)

    @property
    def positions(self) -> torch.Tensor:
        """See `DecodeState.positions`."""
        return self.state.positions

    @property
    def encoded(self) -> bool:
        """Whether what `encode_async` began is done."""
        return self._encoding is None or self._encoding.done

    @torch.inference_mode()
    def encode_async(self, packet: Packet) -> None:
        """Begins to encode what later steps admit. To be called when all else of the step is launched: the
        device is at it while the host launches this."""
        if not len(packet.overlapped):
            return
        assert self.encoder is not None, "this engine was told not to load the encoder"
        encoder, (entries, lengths) = self.encoder, packet.overlapped.T
        self._encoding = self._side.begin(lambda: encode_packed(encoder, packet.overlapped_tokens, lengths))
        ends = np.cumsum(lengths)
        self._encoding_parts = {
            int(entry): slice(end - length, end)
            for entry, length, end in zip(entries, lengths, ends, strict=True)
        }

    def _admit(self, packet: Packet, hidden: Hidden) -> None:
        """Computes the cross-attention K/V of new encoder inputs into their pages."""
        states: list[torch.Tensor] = []
        order: list[int] = []  # of the admissions, as their hidden states stand
        here = packet.admissions[:, 3] == ENCODE_HERE
        if here.any():
            assert self.encoder is not None, "this engine was told not to load the encoder"
            inputs = self.encoder, packet.admission_tokens, packet.admissions[here, 1]
            # K and V are not written there: who had the pages before may be read by the step under way.
            states.append(self._side.begin(lambda: encode_packed(*inputs)).wait())
            order += np.flatnonzero(here).tolist()
        overlapped = packet.admissions[:, 3] == ENCODED_ASYNC
        if overlapped.any():
            assert self._encoding is not None
            encoded, self._encoding = self._encoding.wait(), None
            states += [encoded[self._encoding_parts[entry]] for entry in packet.admissions[overlapped, 0]]
            order += np.flatnonzero(overlapped).tolist()
        for number in np.flatnonzero(~here & ~overlapped).tolist():
            found = hidden(int(packet.admissions[number, 3]))
            states.append(found.to(self.device, self.dtype, non_blocking=True))
            order.append(number)
        slots = self.state.take_inputs(packet, order)
        self.decoder.admit(states[0] if len(states) == 1 else torch.cat(states), slots, self.pool)

    def _decoding(self, packet: Packet) -> int | None:
        """The kind of all rows, where behind each of their positions a token is wanted: each position, of a
        draft as well, then is a row by itself.

        Unless steps are launched at once, only of rows of one position that read an encoder input of their
        own: others read K and V together. Launched at once they cannot, for how many do would have to be
        known beforehand; but as such rows lie next to each other, what one reads is in the cache for others.
        """
        _, _, counts, entries, samples, kinds, _ = packet.rows.T
        kind = int(kinds[0])
        alike = ((counts == samples) & (kinds == kind)).all()
        if not alike or kind == FIRST_BEAM or len(packet.targets):
            return None
        if kind in self._steps:
            return kind if counts.sum() <= self._most(kind) else None
        apart = self.spec.encoder is None or (entries[1:] != entries[:-1]).all()
        return kind if apart and (counts == 1).all() else None

    def _most(self, kind: int) -> int:
        """Rows of a step that is launched at once: a draft's are rows, too."""
        slots, guesses = self.config.max_num_seqs, self.draft_tokens if kind == SINGLE else 0
        most = min(slots * (1 + guesses), self.config.max_batched_tokens)
        return min(most, max(slots, GRAPH_ROWS)) if self.config.uses_graphs(self.device) else most

    def _make_step(self, kind: int) -> None:
        """`_decode` of this kind of rows as one launch, where there is a way."""
        forward, most = partial(self._decode, kind=kind), self._most(kind)
        if self.config.uses_graphs(self.device):
            last = self.config.max_num_seqs
            self._steps[kind] = StepGraphs(forward, [last, 0, last, 0], most, self.device)
        elif self.device.type == "cpu" and self.group.size == 1:
            try:
                self._steps[kind] = kernels.CPUProgram(forward, 4, most)
            except kernels.NotRecordable as reason:
                _LOG.debug("decode steps go op by op: %s", reason)

    @torch.inference_mode()
    def _decode(self, rows: torch.Tensor, kind: int) -> torch.Tensor | None:
        """Logits behind each of these rows, see `DecodeState.rows`."""
        return self.decoder(self.state.gather_rows(rows, beams=kind == BEAM), self.pool)[0]


def encode_packed(encoder: EncoderStack, token_ids: Ints, lengths: Ints) -> torch.Tensor:
    """Packed inputs, one after another → packed hidden states [sum(lengths), d_model]."""
    device = encoder.embedding.tokens.weight.device
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids, borders = (torch.from_numpy(one).to(device, non_blocking=True) for one in (token_ids, cu_seqlens))
    return encoder(ids, borders, int(lengths.max()))
