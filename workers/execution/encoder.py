"""Encoder inputs to hidden states: one packed forward, and a worker that does nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution.front_cache import FrontCache
from tandem.workers.execution.packet import Ints
from tandem.workers.execution.step_media import features_of
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import EncoderStack, load_encoder
from tandem.workers.request import EncoderInput, MediaCounts
from tandem.workers.requests.media import prepare_input, read_processor


class Encoder:
    """The encoder stack alone, for workers that only encode."""

    def __init__(self, config: EngineConfig) -> None:
        self.device = config.torch_device()
        self.dtype = config.torch_dtype(self.device)
        checkpoint = Checkpoint(Path(config.model))
        self.spec = checkpoint.spec
        place = Placement(self.device, self.dtype, Group(), config.quantization)
        self._stack = load_encoder(checkpoint, place)
        self._front = FrontCache(self._stack, Group(), config.encoder_cache_bytes)
        self._processor = read_processor(Path(config.model), self._stack.spec.front)

    @property
    def d_model(self) -> int:
        return self._stack.spec.d_model

    @property
    def media(self) -> MediaCounts:
        """What the front has computed so far."""
        return self._front.counts

    def prepare(self, encoder_input: EncoderInput) -> EncoderInput:
        """The input with the features of its media, which `encode` needs. Takes milliseconds of CPU time for
        media; any thread may call it. Raises InvalidRequest for media that cannot be decoded."""
        return prepare_input(encoder_input, self._processor)

    @torch.inference_mode()
    def encode(self, inputs: Sequence[EncoderInput]) -> torch.Tensor:
        """Hidden states [sum of lengths, d_model], in input order. Inputs with media have their features."""
        lengths = np.array([len(one.token_ids) for one in inputs], dtype=np.int64)
        token_ids = np.concatenate([np.asarray(one.token_ids) for one in inputs])
        vectors = self._front.vectors([key for one in inputs for key in one.item_keys], features_of(inputs))
        return encode_packed(self._stack, token_ids, lengths, vectors)


def encode_packed(
    encoder: EncoderStack, token_ids: Ints, lengths: Ints, vectors: torch.Tensor | None = None
) -> torch.Tensor:
    """Inputs of these lengths, one after another and unpadded → hidden states [sum(lengths), d_model], each
    input's positions of `FrontSpec.padding_id` last.

    vectors: the front's output for the inputs' media, [media positions, d_model]; None: text alone. It may be
    overwritten.
    """
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids, borders = (
        torch.from_numpy(one).to(encoder.device, non_blocking=True) for one in (token_ids, cu_seqlens)
    )
    media, front = None, encoder.spec.front
    if vectors is not None and front is not None:
        at = np.flatnonzero(front.holds_media(token_ids))
        media = torch.from_numpy(at).to(encoder.device, non_blocking=True)
    hidden = encoder.encode(encoder.embed(ids, media, vectors), borders, int(lengths.max()))
    if front is None or front.padding_id is None:
        return hidden
    order = np.lexsort((token_ids == front.padding_id, np.repeat(np.arange(len(lengths)), lengths)))
    return hidden[torch.from_numpy(order).to(encoder.device, non_blocking=True)]
