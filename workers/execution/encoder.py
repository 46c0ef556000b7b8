"""Encoder inputs to hidden states: one packed forward, and a worker that does nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tandem.workers.config import EngineConfig
from tandem.workers.device import HostCopy, Streams, send_ids
from tandem.workers.distributed import Group
from tandem.workers.execution.front_cache import FrontCache
from tandem.workers.execution.packet import Ints
from tandem.workers.execution.step_media import features_of
from tandem.workers.execution.warm_up import encoder_input
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import EncoderStack, load_encoder
from tandem.workers.request import EncoderInput, MediaCounts
from tandem.workers.requests.media import prepare_input, read_processor


class Encoder:
    """The encoder stack alone, for workers that only encode."""

    def __init__(self, config: EngineConfig) -> None:
        """Ready for work: all that a GPU has to be prepared for was done."""
        self.device = config.torch_device()
        self.dtype = config.torch_dtype(self.device)
        checkpoint = Checkpoint(Path(config.model))
        self.spec = checkpoint.spec
        place = Placement(self.device, self.dtype, Group(), config.quantization)
        self._streams = Streams.of(self.device)
        with self._streams.on():
            self._stack = load_encoder(checkpoint, place)
        self._front = FrontCache(self._stack, Group(), config.encoder_cache_bytes, self._streams)
        self._processor = read_processor(Path(config.model), self._stack.spec.front)
        if self.device.type == "cuda":
            self.encode([encoder_input(config, self._stack.spec)])

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
        """Hidden states [sum of lengths, d_model], in input order, on the CPU. Inputs with media have their
        features."""
        lengths = np.array([len(one.token_ids) for one in inputs], dtype=np.int64)
        token_ids = np.concatenate([np.asarray(one.token_ids) for one in inputs])
        with self._streams.on():
            keys = [key for one in inputs for key in one.item_keys]
            vectors = self._front.vectors(keys, token_ids, features_of(inputs))
            return HostCopy(encode_packed(self._stack, token_ids, lengths, vectors)).wait()[0]


def encode_packed(
    encoder: EncoderStack, token_ids: Ints, lengths: Ints, vectors: torch.Tensor | None = None
) -> torch.Tensor:
    """Inputs of these lengths, one after another and unpadded → hidden states [sum(lengths), d_model], each
    input's positions of `FrontSpec.padding_id` last.

    vectors: the front's output for the inputs' media, [items * FrontSpec.positions, d_model]; None: text
        alone. It may be overwritten.
    """
    bring = partial(send_ids, device=encoder.device)
    media, front = None, encoder.spec.front
    if vectors is not None and front is not None:
        media = bring(torch.from_numpy(np.flatnonzero(front.holds_media(token_ids))))
        if front.varying:
            own = [item * front.positions + np.arange(length) for item, length in enumerate(lengths)]
            vectors = vectors[bring(torch.from_numpy(np.concatenate(own)))]
    embedded = encoder.embed(bring(torch.from_numpy(token_ids)), media, vectors)
    hidden = encoder.encode(embedded, lengths.tolist())
    if front is None or front.padding_id is None:
        return hidden
    order = np.lexsort((token_ids == front.padding_id, np.repeat(np.arange(len(lengths)), lengths)))
    return hidden[bring(torch.from_numpy(order))]
