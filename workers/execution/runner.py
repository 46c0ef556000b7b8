"""Executes steps on one rank: encoder inputs into pages, rows to logits, sequences on by what was chosen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tandem import kernels
from tandem.workers.config import EngineConfig
from tandem.workers.device import Streams, Work, send
from tandem.workers.distributed import Group
from tandem.workers.execution import warm_up
from tandem.workers.execution.alignments import Alignments
from tandem.workers.execution.decode_state import DecodeState
from tandem.workers.execution.encoder import encode_packed
from tandem.workers.execution.front_cache import FrontCache
from tandem.workers.execution.packet import (
    BEAM,
    ENCODE_HERE,
    ENCODED_ASYNC,
    FIRST_BEAM,
    SINGLE,
    EncodePacket,
    Ints,
    MediaItems,
    Packet,
)
from tandem.workers.execution.step_graphs import StepGraphs
from tandem.workers.execution.step_media import NO_MEDIA, StepMedia, features_of
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.head import TargetScores
from tandem.workers.models.kv_pool import KVPool, pool_pages
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import DecoderStack, load_decoder, load_encoder
from tandem.workers.request import MediaCounts

_LOG = logging.getLogger(__name__)

Hidden = Callable[[int], torch.Tensor]  # handle → hidden states [length, d_model], on any device


class Runner:
    """One rank's model, pages and decode state.

    The last slot, cross entry and page are no sequence's. Rows that pad a batch use them: one position each,
    which sees itself and one position of an encoder input.
    """

    def __init__(self, config: EngineConfig, group: Group) -> None:
        """Ready for work: all that a GPU has to be prepared for was done. All ranks are made together."""
        self.config, self.group = config, group
        self.device = config.torch_device(group.rank)
        self.dtype = config.torch_dtype(self.device)
        self.streams = Streams.of(self.device)
        with self.streams.on():
            self._load(config, group)
            if self.device.type == "cuda":
                self._warm_up()

    def _load(self, config: EngineConfig, group: Group) -> None:
        place = Placement(self.device, self.dtype, group, config.quantization)
        checkpoint = Checkpoint(Path(config.model))
        self.spec = checkpoint.spec
        encodes = config.with_encoder and self.spec.encoder is not None
        self.encoder = load_encoder(checkpoint, place) if encodes else None
        self._front: FrontCache | None = None  # None without an encoder
        if self.encoder is not None:
            self._front = FrontCache(self.encoder, group, config.encoder_cache_bytes, self.streams)
        self.decoder = load_decoder(checkpoint, place)
        self._encoding: Work | None = None  # inputs encoded alongside the steps
        self._encoding_parts: dict[int, slice] = {}  # cross entry → its rows in their hidden states

        stack = self.spec.decoder
        self.page_size = config.positions_per_page(self.device)
        # Rank 0 hands out page ids for all ranks, whose memory may differ.
        self.num_pages = group.least(pool_pages(config, self.spec, self.device))
        self.pool = KVPool(
            self.spec.kv_planes, self.num_pages + 1, stack.shared_heads // group.size, self.page_size,
            stack.head_dim, self.device, config.kv_dtype(self.device), self.spec.cross_planes,
        )  # fmt: skip
        self.draft_tokens = config.draft_tokens if self.spec.drafts_from_source else 0
        self.state = DecodeState(
            config, self.device, self.page_size, self.num_pages, drafts=self.draft_tokens > 0,
            cross_planes=self.spec.cross_planes, spans=self.spec.media_token_id is not None,
        )  # fmt: skip
        self._alignments = Alignments(self.spec, group)
        # Decode steps in one launch, by kind of row; for beams, made when the first ones come.
        self._steps: dict[int, StepGraphs | kernels.CPUProgram] = {}
        self._make_step(SINGLE)

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Runs steps that have every kernel compiled, in each way of splitting keys, and beams captured."""
        hidden: list[torch.Tensor] = []
        media = NO_MEDIA
        if (encoder := self.spec.encoder) is not None:
            made = warm_up.encoder_input(self.config, encoder)
            hidden.append(torch.zeros(len(made.token_ids), encoder.d_model))
            media = StepMedia(features_of([made]))
        # Graphs are captured in the first round, with the splits that they will have.
        for splits in (None, *kernels.SPLITS):
            with kernels.splitting(splits):
                for packet in warm_up.steps(self.config, self.spec, self.page_size, self.num_pages):
                    self.execute(packet, hidden.__getitem__, media)
                    own = torch.zeros(packet.choices, dtype=torch.int64, device=self.device)
                    self.finish(packet, own)
                row = torch.zeros(4, 1, dtype=torch.int64, device=self.device)
                for kind in (SINGLE, BEAM):  # op by op, as those go that are more than the graphs are for
                    _decode(self.decoder, self.state, self.pool, kind, row)
        torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """Gives back the memory: pool, graphs and weights. Nothing may be called after it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._steps.clear()
        self._encoding = self._front = None
        del self.pool, self.state, self.encoder, self.decoder
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def execute(
        self, packet: Packet, hidden: Hidden, media: StepMedia = NO_MEDIA
    ) -> tuple[torch.Tensor | None, TargetScores | None]:
        """Runs a step up to its logits and scores, see `DecoderStack`.

        `finish` completes it. `hidden` gives the hidden states of admissions encoded elsewhere, `media` on
        rank 0 the features of those encoded here.
        """
        self.state.take(packet)
        if len(packet.admissions):
            self._admit(packet, hidden, media)
        if not len(packet.rows):
            return None, None
        kind = self._decoding(packet)
        if kind is None:
            if self.state.lacks_beams(packet):
                self.state.make_beams()
                self._make_step(BEAM)
            return self._any_rows(packet)
        rows = self.state.rows(packet)
        if kind in self._steps:
            return self._steps[kind](rows), None
        sent = send(torch.from_numpy(rows), self.device)
        return _decode(self.decoder, self.state, self.pool, kind, sent), None

    def _any_rows(self, packet: Packet) -> tuple[torch.Tensor | None, TargetScores | None]:
        """Runs rows of several kinds, or with targets."""
        batch = self.state.batch(packet)
        batch.recorded = self._alignments.begin(packet)
        logits, scores = self.decoder(batch, self.pool)
        attention = self._alignments.finish(packet, self.state, self.pool)
        if scores is not None and attention:
            scores = scores._replace(attention=attention)
        return logits, scores

    @torch.inference_mode()
    def finish(self, packet: Packet, choice: torch.Tensor | None) -> torch.Tensor | None:
        """Makes `Sampled.choice` known to all ranks, and advances the sequences by it. Rank 0 gives it.

        Returns int64 [sampling sequences without beams, 3], the numbers of a `DraftOutcome` each; None
        without drafts.
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
        """Whether the encoding that `encode_async` began is done."""
        return self._encoding is None or self._encoding.done

    @property
    def media(self) -> MediaCounts:
        """What the front has computed so far."""
        return MediaCounts() if self._front is None else self._front.counts

    @torch.inference_mode()
    def encode_async(self, packet: Packet, media: StepMedia = NO_MEDIA) -> None:
        """Begins to encode what later steps admit. To be called when all else of the step is launched: the
        device works on that while the host launches this. `media` is as for `execute`."""
        inputs = packet.overlapped
        if not len(inputs):
            return
        arguments = packet.overlapped_tokens, inputs.length, packet.overlapped_media, media.overlapped
        self._encoding = self.streams.beside(lambda: self._encode(*arguments))
        ends = np.cumsum(inputs.length)
        self._encoding_parts = {
            int(entry): slice(end - length, end)
            for entry, length, end in zip(inputs.entry, inputs.length, ends, strict=True)
        }

    @torch.inference_mode()
    def encode(self, packet: EncodePacket, features: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """The hidden states [sum of lengths, d_model] of inputs that no step admits, on the device. To be
        called between two steps; `features` are rank 0's, see `StepMedia`."""
        arguments = packet.token_ids, packet.lengths, packet.media, features
        return self.streams.beside(lambda: self._encode(*arguments)).wait()

    def _encode(
        self, token_ids: Ints, lengths: Ints, media: MediaItems, own: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """`encode_packed`, after rank 0's features have come to all ranks. To be called on the side stream,
        whose memory they are, as are the front's outputs: the copy must not wait for the step under way."""
        assert self.encoder is not None, "this engine was told not to load the encoder"
        assert self._front is not None
        vectors = self._front.vectors(media.keys, token_ids, own)
        return encode_packed(self.encoder, token_ids, lengths, vectors)

    def _admit(self, packet: Packet, hidden: Hidden, media: StepMedia) -> None:
        """Computes the cross-attention K/V of new encoder inputs into their pages."""
        states: list[torch.Tensor] = []
        order: list[int] = []  # the admissions' numbers, as their hidden states stand
        admissions = packet.admissions
        here = admissions.handle == ENCODE_HERE
        if here.any():
            lengths = admissions.length[here]
            inputs = packet.admission_tokens, lengths, packet.admission_media, media.admitted
            # K and V are written by the main stream: the step under way may still read the pages' last owner.
            states.append(self.streams.beside(lambda: self._encode(*inputs)).wait())
            order += np.flatnonzero(here).tolist()
        overlapped = admissions.handle == ENCODED_ASYNC
        if overlapped.any():
            assert self._encoding is not None
            encoded, self._encoding = self._encoding.wait(), None
            states += [encoded[self._encoding_parts[entry]] for entry in admissions.entry[overlapped]]
            order += np.flatnonzero(overlapped).tolist()
        given = np.flatnonzero(~here & ~overlapped).tolist()
        found = (hidden(int(admissions.handle[number])) for number in given)
        coming = [self.streams.bring(one, self.device, self.dtype) for one in found]
        states += [one.wait() for one in coming]
        order += given
        slots = self.state.take_inputs(packet, order)
        self.decoder.admit(states[0] if len(states) == 1 else torch.cat(states), slots, self.pool)

    def _decoding(self, packet: Packet) -> int | None:
        """The kind of all rows, if every position of theirs, draft tokens included, gives a token: then each
        position is a row by itself. None: they are laid out by `DecodeState.batch`.

        Without a one-launch step, only rows of one position with an encoder input of their own qualify:
        others read K and V together. In one launch they cannot, because how many do would have to be known
        beforehand; but as such rows are adjacent, what one reads is in the cache for the others.
        """
        rows = packet.rows
        counts, entries, kind = rows.count, rows.entry, int(rows.kind[0])
        alike = ((counts == rows.samples) & (rows.kind == kind)).all()
        if not alike or kind == FIRST_BEAM or len(packet.targets):
            return None
        if kind in self._steps:
            return kind if counts.sum() <= self._steps[kind].most else None
        apart = self.spec.encoder is None or (entries[1:] != entries[:-1]).all()
        return kind if apart and (counts == 1).all() else None

    def _most(self, kind: int) -> int:
        """Rows of a one-launch step, at most; draft tokens are rows, too."""
        slots, drafts = self.config.max_num_seqs, self.draft_tokens if kind == SINGLE else 0
        return min(slots * (1 + drafts), self.config.max_batched_tokens)

    def _make_step(self, kind: int) -> None:
        """Makes `_decode` of this kind of rows one launch, if possible: a CUDA graph or a CPU program."""
        # It holds what it needs and not the runner: one that is dropped is gone at once, its pages with it.
        forward = partial(_decode, self.decoder, self.state, self.pool, kind)
        most = self._most(kind)
        if self.config.uses_graphs(self.device):
            last = self.config.max_num_seqs
            self._steps[kind] = StepGraphs(forward, [last, 0, last, 0], most, self.device)
        elif self.device.type == "cpu" and self.group.size == 1:
            try:
                self._steps[kind] = kernels.CPUProgram(forward, 4, most)
            except kernels.NotRecordable as reason:
                _LOG.debug("decode steps go op by op: %s", reason)


@torch.inference_mode()
def _decode(
    decoder: DecoderStack, state: DecodeState, pool: KVPool, kind: int, rows: torch.Tensor
) -> torch.Tensor | None:
    """The logits of each of these rows, see `DecodeState.rows`."""
    return decoder(state.gather_rows(rows, beams=kind == BEAM), pool)[0]
