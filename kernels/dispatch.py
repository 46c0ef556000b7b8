"""Which backend runs an op: Triton's kernels, the CPU's C++ extension, or plain PyTorch.

A backend is a class with every op under its name. It derives from `Reference`, so that an op it lacks is
PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from tandem.kernels import reference
from tandem.kernels.compiling import watch_triton
from tandem.kernels.cpu import ops as cpu_ops


class Reference:
    """Every op in PyTorch."""

    activate = staticmethod(reference.activate)
    add_depthwise = staticmethod(reference.add_depthwise)
    add_layer_norm = staticmethod(reference.add_layer_norm)
    add_rms_norm = staticmethod(reference.add_rms_norm)
    alignment_scores = staticmethod(reference.alignment_scores)
    apply_timestamp_rules = staticmethod(reference.apply_timestamp_rules)
    argmax = staticmethod(reference.argmax)
    ban_tokens = staticmethod(reference.ban_tokens)
    embed = staticmethod(reference.embed)
    encoder_attention = staticmethod(reference.encoder_attention)
    gather_rows = staticmethod(reference.gather_rows)
    grouped_attention = staticmethod(reference.grouped_attention)
    keep_rows = staticmethod(reference.keep_rows)
    layer_norm = staticmethod(reference.layer_norm)
    logsumexp = staticmethod(reference.logsumexp)
    match_prompt_tokens = staticmethod(reference.match_prompt_tokens)
    merge_attention = staticmethod(reference.merge_attention)
    paged_beam_attention = staticmethod(reference.paged_beam_attention)
    paged_cross_attention = staticmethod(reference.paged_cross_attention)
    paged_self_attention = staticmethod(reference.paged_self_attention)
    rms_norm = staticmethod(reference.rms_norm)
    rotary = staticmethod(reference.rotary)
    scale = staticmethod(reference.scale)
    soft_capped = staticmethod(reference.soft_capped)
    time_warp = staticmethod(reference.time_warp)
    write_kv = staticmethod(reference.write_kv)


def _backend(ops: ModuleType, names: Iterable[str]) -> type[Reference]:
    """The module's ops of these names, and the reference's others."""
    return type(ops.__name__, (Reference,), {name: staticmethod(getattr(ops, name)) for name in names})


_CPU: Final = {dtype: _backend(cpu_ops, names) for dtype, names in cpu_ops.DTYPES.items()}


@cache
def _triton() -> type[Reference]:
    """Imported on the first CUDA call, so that machines without Triton work."""
    from tandem.kernels.triton import ops

    watch_triton()
    return _backend(ops, ops.__all__)


def backend(x: Tensor, *alike: Tensor, pages: Tensor | None = None) -> type[Reference]:
    """The backend for these tensors: Triton on CUDA; on the CPU the extension, if it is there and has an op
    of their dtype; else PyTorch.

    alike: tensors that the extension wants in x's dtype. pages: K or V, which it wants in float32 or
    bfloat16.
    """
    if x.is_cuda:
        return _triton()
    if not (cpu_ops.COMPILED and x.is_cpu):
        return Reference
    dtype = x.dtype
    # A loop: this runs a hundred times a step.
    for tensor in alike:
        if tensor.dtype != dtype:
            return Reference
    if pages is not None and pages.dtype not in (torch.float32, torch.bfloat16):
        return Reference
    return _CPU.get(dtype, Reference)
