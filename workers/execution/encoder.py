"""The encoder stack alone, for workers that only encode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution.runner import encode_packed
from tandem.workers.models.checkpoint import Checkpoint, read_json
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import load_encoder


class Encoder:
    """Encoder inputs to hidden states, packed and unpadded."""

    def __init__(self, config: EngineConfig) -> None:
        folder = Path(config.model)
        self.device = config.torch_device()
        self.dtype = config.torch_dtype(self.device)
        checkpoint = Checkpoint(folder, read_json(folder, "config.json"))
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
