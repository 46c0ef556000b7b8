"""How an engine is set up, and what follows from the device."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, cast, get_args

import torch

from tandem.errors import InvalidRequest
from tandem.kernels.cpu.ops import COMPILED
from tandem.workers.constraints import Above, AtLeast, check_fields

Dtype = Literal["auto", "float32", "bfloat16"]  # no float16: T5's activations overflow it
Device = Literal["auto", "cpu", "cuda"]
Quantization = Literal["int8"]

GIB = 2**30


_Size = Annotated[int, AtLeast(1)]


@dataclass(frozen=True)
class EngineConfig:
    """Everything an engine needs to know. It never changes, and is the same on every rank.

    Raises InvalidRequest, naming the field, for a value or a combination that cannot be.
    """

    model: str  # a local folder, see model_folder.resolve
    dtype: Dtype = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    device: Device = "auto"
    quantization: Quantization | None = None  # int8: projections', on a CPU and in float32; see Int8Linear
    tensor_parallel_size: _Size = 1
    max_num_seqs: _Size = 64  # sequences decoded at once
    max_batched_tokens: _Size = 2048  # decoder positions in one step
    max_encoder_tokens: _Size = 4096  # encoder positions in one forward; a longer input goes alone
    max_encoder_length: _Size = 4096  # positions of one encoder input
    max_decoder_length: _Size = 4096  # decoder prompt + generated tokens
    # None: what max_num_seqs can use, up to 1 GiB on a CPU and 80 % of what is free on a GPU.
    kv_cache_gib: Annotated[float, Above(0)] | None = None
    page_size: _Size | None = None  # positions in a page; None: 32 on a CPU, 64 on a GPU
    num_pages: _Size | None = None  # overrides kv_cache_gib
    with_encoder: bool = True  # False: hidden states come from outside, no encoder is loaded
    # Outputs of a vision model that are kept for other questions about the same images, on each rank that
    # encodes; 0: none.
    encoder_cache_bytes: Annotated[int, AtLeast(0)] = 256 * 2**20
    # Draft tokens of a greedy sequence in one step, at most; 0: none. 7 and the known token make 8
    # rows, which tile a page.
    draft_tokens: Annotated[int, AtLeast(0)] = 7
    overlap: bool | None = None  # launch a step before the last one's tokens are read; None: on a GPU
    # Encode inputs alongside several steps of others; None: on a GPU of one rank. The collectives of several
    # ranks have one order, so their steps would wait all the same.
    async_encode: bool | None = None
    # Launch decode steps as CUDA graphs; None: on a GPU of one rank. On a CPU, batches are padded alike.
    cuda_graphs: bool | None = None
    check_invariants: bool = False  # after every step

    def __post_init__(self) -> None:
        if (dtype := str(self.dtype)) in ("half", "float16"):
            raise InvalidRequest(
                f"must be one of {', '.join(get_args(Dtype))}, got {dtype!r}; T5's activations overflow it",
                field="dtype",
            )
        check_fields(self)
        if self.quantization is not None and (self.dtype == "bfloat16" or self.device == "cuda"):
            raise InvalidRequest(
                f"goes with float32 on a CPU, got {self.dtype} on {self.device}", field="quantization"
            )
        if self.max_batched_tokens < self.max_num_seqs:
            raise InvalidRequest(
                f"must be at least max_num_seqs = {self.max_num_seqs}, got {self.max_batched_tokens}",
                field="max_batched_tokens",
            )
        if self.cuda_graphs and self.tensor_parallel_size > 1:
            raise InvalidRequest("takes a tensor_parallel_size of 1", field="cuda_graphs")

    @classmethod
    def of(cls, *, dtype: str = "auto", **options: Any) -> EngineConfig:
        """The configuration of options as a person writes them: "float" is float32. Raises InvalidRequest,
        naming the option that is unknown or unusable."""
        unknown = sorted(set(options) - {field.name for field in fields(cls)})
        if unknown:
            raise InvalidRequest("unknown option", field=unknown[0])
        return cls(dtype=cast(Dtype, {"float": "float32"}.get(dtype, dtype)), **options)

    def torch_device(self, rank: int = 0) -> torch.device:
        kind = self.device
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() and self.quantization is None else "cpu"
        if kind == "cuda" and not torch.cuda.is_available():
            raise InvalidRequest("cuda: there is no GPU here that torch can use", field="device")
        # Ray shows a shard its own GPU only; ranks spawned by LLM see them all.
        return torch.device(kind, rank % torch.cuda.device_count()) if kind == "cuda" else torch.device("cpu")

    def torch_dtype(self, device: torch.device) -> torch.dtype:
        if self.dtype == "auto":
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        return torch.float32 if self.dtype == "float32" else torch.bfloat16

    def kv_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype of self- and cross-attention's K and V: that of the activations, and bfloat16 where
        products are in int8, which lose more. Without the CPU's extension float32: PyTorch's sparse products
        take nothing else, and to convert a history at every step costs more than the memory it saves."""
        if device.type != "cpu":
            return self.torch_dtype(device)
        lower = self.quantization is not None or self.dtype == "bfloat16"
        return torch.bfloat16 if lower and COMPILED else torch.float32

    def uses_graphs(self, device: torch.device) -> bool:
        if self.cuda_graphs is None:
            return device.type == "cuda" and self.tensor_parallel_size == 1
        return self.cuda_graphs

    def encodes_async(self, device: torch.device) -> bool:
        if self.async_encode is None:
            return self.with_encoder and device.type == "cuda" and self.tensor_parallel_size == 1
        return self.with_encoder and self.async_encode

    def positions_per_page(self, device: torch.device) -> int:
        return self.page_size or (64 if device.type == "cuda" else 32)
