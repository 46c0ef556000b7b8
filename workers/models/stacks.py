"""The one forward pass: an encoder and a decoder stack as their spec says, over packed tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Generic, TypeVar

import torch

from tandem import kernels
from tandem.errors import ModelLoadError
from tandem.workers.device import send
from tandem.workers.models.attention import (
    BiasTables,
    CrossAttention,
    CrossKV,
    EncoderAttention,
    MergedAttention,
    QKVAttention,
    SelfAttention,
)
from tandem.workers.models.batch import DecoderBatch
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.embedding import Embedding
from tandem.workers.models.fronts import Front
from tandem.workers.models.head import Head, TargetScores
from tandem.workers.models.kv_pool import KVPool
from tandem.workers.models.layers import Norm, Placement, WeightSlot, stack_norm, weights_of
from tandem.workers.models.positions import rotary_speeds
from tandem.workers.models.spec import AttentionKind, ModelSpec, Rotary, StackSpec
from tandem.workers.models.sublayers import (
    DecoderPass,
    EncoderPass,
    FeedForward,
    Parallel,
    PassT,
    Rotation,
    Rotations,
    Sublayer,
)


class Stack(Generic[PassT]):
    """Layers of sublayers, which encoder and decoder have in common."""

    def __init__(
        self, side: str, stack: StackSpec, attentions: Sequence[Sequence[Sublayer[PassT]]], place: Placement
    ) -> None:
        """attentions: each layer's, in order."""
        self.spec, self.device, self._dtype = stack, place.device, place.dtype
        self.embedding = Embedding(side, stack, place)
        self.layers = [
            _layer(f"{side}.layers.{layer}.feed_forward", of_layer, stack, place)
            for layer, of_layer in enumerate(attentions)
        ]
        self.final_norm = None if stack.post_norm else stack_norm(f"{side}.final_norm", stack, place)
        # Every sublayer in order, and the norm of the sum after it: the next sublayer's, or with post-norm
        # its own. A stack of no layers, behind a front that is a whole encoder, is a norm or nothing.
        sublayers = [sublayer for of_layer in self.layers for sublayer in of_layer]
        norms: list[Norm] = [sublayer.norm for sublayer in sublayers]
        self._first_norm: Norm | None = None
        if self.final_norm is not None:
            self._first_norm, *norms = [*norms, self.final_norm]
        self.steps = list(zip(sublayers, norms, strict=True))
        gated = (one for one in sublayers if isinstance(one, CrossAttention | FeedForward))
        self._gates = [one.gate for one in gated if one.gate is not None]
        self._speeds = {
            rotary: rotary_speeds(rotary).to(place.device)
            for rotary in (stack.rotary, stack.window_rotary)
            if rotary is not None
        }

    def slots(self) -> Iterator[WeightSlot]:
        sublayers = (sublayer for sublayer, _ in self.steps)
        return weights_of(self.embedding, *sublayers, self.final_norm)

    def run(self, x: torch.Tensor, step: PassT) -> torch.Tensor:
        """All layers: embedded rows [N, d_model] → the stack's output [N, d_model]."""
        total, post_norm = x, self.spec.post_norm
        if self._first_norm is not None:
            x = self._first_norm(x)
        for sublayer, norm in self.steps:
            x, total = norm.add(sublayer(x, step), total)
            if post_norm:
                total = x
        return x

    def rotations(self, positions: torch.Tensor | None) -> Rotations:
        """Angles of rows at these positions, int64 [N]."""
        made: dict[Rotary | None, Rotation] = {}
        for rotary, speeds in self._speeds.items():
            assert positions is not None
            angles = positions.float().unsqueeze(1) * speeds
            made[rotary] = angles.cos().to(self._dtype), angles.sin().to(self._dtype)
        return made


def _layer(
    name: str, attentions: Sequence[Sublayer[PassT]], stack: StackSpec, place: Placement
) -> list[Sublayer[PassT]]:
    """A layer's sublayers; name: its feed-forward's."""
    if not stack.parallel_residual:
        gated = stack.cross_gates and isinstance(attentions[-1], CrossAttention)
        return [*attentions, FeedForward(name, stack, place, gated=gated)]
    *before, last = attentions
    return [*before, Parallel(last, FeedForward(name, stack, place, last.norm))]


class EncoderStack(Stack[EncoderPass]):
    """Token ids and media to hidden states."""

    def __init__(self, spec: StackSpec, place: Placement) -> None:
        self._attentions: list[EncoderAttention] = []
        for layer in range(spec.layers):
            name, bias_of = f"encoder.layers.{layer}.self_attention", _bias_of(self._attentions, spec)
            self._attentions.append(EncoderAttention(name, spec, layer, place, bias_of))
        super().__init__("encoder", spec, [[attention] for attention in self._attentions], place)
        self._tables = BiasTables(spec, place, bidirectional=True)

    def prepare(self) -> None:
        """All weights are loaded: derives from them what does not change."""
        self.embedding.prepare()
        for attention in self._attentions:
            attention.prepare(self._tables)

    def embed(
        self, token_ids: torch.Tensor, media: torch.Tensor | None = None, vectors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """int64 [N] → a vector for each position [N, d_model], for `encode`. The positions `media` are the
        front's `vectors`, see `Embedding.embed_media`."""
        if media is None or vectors is None:
            return self.embedding.embed(token_ids)
        return self.embedding.embed_media(token_ids, media, vectors)

    @property
    def front(self) -> Front | None:
        """What makes the vectors of media; None: this stack reads none."""
        return self.embedding.front

    def encode(self, x: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Inputs of these lengths, packed and unpadded: vectors [N, d_model] → hidden states [N, d_model]."""
        bring = partial(send, device=x.device)
        cu_seqlens = bring(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32))
        positions = blocks = None
        if self.spec.positions is not None or self.spec.rotary is not None:
            positions = _positions(cu_seqlens, len(x))
        if self.spec.summary_block is not None:
            blocks = kernels.Blocks.of(lengths, self.spec.summary_block, bring)
        step = EncoderPass(cu_seqlens, max(lengths), blocks, self.rotations(positions))
        return self.run(self.embedding.add_positions(x, positions), step)

    def __call__(self, token_ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """`encode` of token ids, int64 [N]."""
        return self.encode(self.embed(token_ids), lengths)


class DecoderStack(Stack[DecoderPass]):
    """Rows of tokens to logits, over the pages of the rows' sequences."""

    def __init__(self, spec: ModelSpec, tied_output: bool, place: Placement) -> None:
        stack = spec.decoder
        self._attentions: list[SelfAttention] = []
        layers = [
            [self._attention(kind, layer, spec, place) for kind in spec.attentions(layer)]
            for layer in range(stack.layers)
        ]
        super().__init__("decoder", stack, layers, place)
        assert self.embedding.tokens is not None, "a decoder reads tokens"
        self.head = Head(spec, self.embedding.tokens, tied_output, place)
        names = [
            f"decoder.layers.{layer}.cross_attention"
            for layer in range(stack.layers)
            if spec.attentions(layer) != ("self",)
        ]
        self.cross_kv = None if spec.encoder is None else CrossKV(names, spec.encoder, spec, place)
        self._tables = BiasTables(stack, place, bidirectional=False)

    def _attention(
        self, kind: AttentionKind, layer: int, spec: ModelSpec, place: Placement
    ) -> Sublayer[DecoderPass]:
        stack, name, plane = spec.decoder, f"decoder.layers.{layer}", spec.plane(layer, kind)
        if kind == "cross":
            return CrossAttention(f"{name}.cross_attention", stack, plane, place)
        make = MergedAttention if kind == "merged" else SelfAttention
        bias_of = _bias_of(self._attentions, stack)
        made = make(f"{name}.self_attention", stack, layer, plane, place, bias_of)
        self._attentions.append(made)
        return made

    def slots(self) -> Iterator[WeightSlot]:
        yield from super().slots()
        yield from weights_of(self.head, self.cross_kv)

    def prepare(self) -> None:
        """All weights are loaded: derives from them what does not change."""
        self.embedding.prepare()
        for attention in self._attentions:
            attention.prepare(self._tables)
        for gate in self._gates:
            gate.prepare()
        if self.cross_kv is not None:
            self.cross_kv.prepare()
        self.head.prepare()

    def admit(self, hidden: torch.Tensor, write_slots: torch.Tensor, pool: KVPool) -> None:
        """Projects encoder output to the K/V of every cross-attention, in one GEMM, into the pages.

        hidden [N, encoder's d_model], packed; write_slots int64 [N].
        """
        assert self.cross_kv is not None, "a decoder-only model admits nothing"
        rows = self.cross_kv.rows_at_once(hidden)
        for some, slots in zip(hidden.split(rows), write_slots.split(rows), strict=True):
            kv = self.cross_kv(some)
            for number in range(kv.shape[1]):
                plane = number * pool.cross_planes
                pool.write_cross(plane, kv[:, number, 0], kv[:, number, 1], slots)

    def __call__(self, batch: DecoderBatch, pool: KVPool) -> tuple[torch.Tensor | None, TargetScores | None]:
        """Logits of the sampling rows, float32 [rows, vocabulary], and the targets' scores; both on rank 0
        only and where there are any, else None."""
        x = self.embedding.add_positions(self.embedding.embed(batch.token_ids), batch.positions)
        x = self.run(x, DecoderPass(batch, pool, self.rotations(batch.positions)))
        sampled = x if batch.sample_rows is None else x[batch.sample_rows]
        scores = None if batch.targets is None else self.head.scores(x, batch.targets)
        return self.head(sampled) if len(sampled) else None, scores


AttentionT = TypeVar("AttentionT", bound=QKVAttention)


def _bias_of(attentions: Sequence[AttentionT], stack: StackSpec) -> AttentionT | None:
    """The attention whose relative bias the next one shares."""
    relative = stack.relative_bias
    return attentions[0] if attentions and relative is not None and not relative.per_layer else None


def _positions(cu_seqlens: torch.Tensor, count: int) -> torch.Tensor:
    """Each packed row's position in its own input: int64 [count]."""
    starts = cu_seqlens[:-1].long().repeat_interleave(cu_seqlens.diff().long(), output_size=count)
    return torch.arange(count, device=cu_seqlens.device) - starts


def load_encoder(checkpoint: Checkpoint, place: Placement) -> EncoderStack:
    """Raises ModelLoadError where the model has no encoder."""
    if checkpoint.spec.encoder is None:
        raise ModelLoadError(
            "is decoder-only: serve it without encoder workers (placement: colocated)", field="model"
        )
    encoder = EncoderStack(checkpoint.spec.encoder, place)
    checkpoint.load(encoder.slots())
    encoder.prepare()
    place.pack()
    return encoder


def load_decoder(checkpoint: Checkpoint, place: Placement) -> DecoderStack:
    decoder = DecoderStack(checkpoint.spec, checkpoint.tied("decoder.output", "decoder.embedding"), place)
    checkpoint.load(decoder.slots())
    decoder.prepare()
    place.pack()
    return decoder
