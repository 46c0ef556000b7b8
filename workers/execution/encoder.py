"""Encoder inputs to hidden states: one packed forward, and a worker that does nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution.packet import Ints
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import EncoderStack, load_encoder


class Encoder:
    """The encoder stack alone, for workers that only encode."""

    def __init__(self, config: EngineConfig) -> None:
        self.device = config.torch_device()
        self.dtype = config.torch_dtype(self.device)
        checkpoint = Checkpoint(Path(config.model))
        self.spec = checkpoint.spec
        place = Placement(self.device, self.dtype, Group(), config.quantization)
        self._stack = load_encoder(checkpoint, place)

    @property
    def d_model(self) -> int:
        return self._stack.spec.d_model

    @torch.inference_mode()
    def encode(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        """Token ids of each input → hidden states [sum of lengths, d_model], in input order."""
        lengths = np.array([len(ids) for ids in inputs], dtype=np.int64)
        return encode_packed(self._stack, np.concatenate([np.asarray(ids) for ids in inputs]), lengths)


def encode_packed(encoder: EncoderStack, token_ids: Ints, lengths: Ints) -> torch.Tensor:
    """Inputs of these lengths, one after another and unpadded → hidden states [sum(lengths), d_model]."""
    device = encoder.embedding.tokens.weight.device
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids, borders = (torch.from_numpy(one).to(device, non_blocking=True) for one in (token_ids, cu_seqlens))
    return encoder(ids, borders, int(lengths.max()))
