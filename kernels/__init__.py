"""The ops of the forward pass.

Each function runs its Triton kernel on CUDA tensors and its plain PyTorch twin on all others; the twin in
reference.py says what it computes. Triton is imported on the first CUDA call, so machines without it work.

The hot ops of decoding have more ways on the CPU: cpu_ops.py, compiled when Tandem is installed with a
compiler at hand; without it cpu_decode.py, which reference.py takes for the paged attention of steps with few
rows. linear.py holds the matrix products, whose weights are laid out for the CPU.

No module here is named like a function: importing it would replace the function in this namespace.
"""

from __future__ import annotations

from torch import Tensor

from tandem.kernels import decode_rows, reference
from tandem.kernels.cpu import ops as cpu_ops
from tandem.kernels.cpu.program import CPUProgram, NotRecordable
from tandem.kernels.decode_rows import DecodeRows, DecodeTables
from tandem.kernels.groups import RowGroups
from tandem.kernels.linear import Int8Linear, Linear
from tandem.kernels.reference import ACTIVATIONS, soft_capped
from tandem.kernels.relative_bias import relative_bias_table, windowed_bias_table
from tandem.kernels.summaries import Blocks, Summaries

__all__ = [
    "ACTIVATIONS",
    "Blocks",
    "CPUProgram",
    "DecodeRows",
    "DecodeTables",
    "Int8Linear",
    "Linear",
    "NotRecordable",
    "RowGroups",
    "Summaries",
    "activate",
    "add_layer_norm",
    "add_rms_norm",
    "argmax",
    "embed",
    "encoder_attention",
    "gated_gelu",
    "gather_rows",
    "layer_norm",
    "match_prompt_tokens",
    "merge_attention",
    "paged_beam_attention",
    "paged_cross_attention",
    "paged_self_attention",
    "relative_bias_table",
    "rms_norm",
    "rotary",
    "scale",
    "soft_capped",
    "windowed_bias_table",
    "write_kv",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of rows [N, d] with weight [d], as in T5."""
    if x.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.rms_norm(x, weight, eps)
    if cpu_ops.takes(x, weight):
        return cpu_ops.add_norm(x, None, weight, None, eps)[0]
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual sum of x and residual [N, d] and its RMS norm: ``(rms_norm(sum), sum)``."""
    if x.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.add_rms_norm(x, residual, weight, eps)
    if cpu_ops.takes(x, residual, weight):
        return cpu_ops.add_norm(x, residual, weight, None, eps)
    return reference.add_rms_norm(x, residual, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of rows [N, d] with weight and bias [d]. PyTorch's own kernel is fused on CUDA too."""
    if cpu_ops.takes(x, weight, bias):
        return cpu_ops.add_norm(x, None, weight, bias, eps)[0]
    return reference.layer_norm(x, weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual sum of x and residual [N, d] and its LayerNorm: ``(layer_norm(sum), sum)``."""
    if x.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.add_layer_norm(x, residual, weight, bias, eps)
    if cpu_ops.takes(x, residual, weight, bias):
        return cpu_ops.add_norm(x, residual, weight, bias, eps)
    return reference.add_layer_norm(x, residual, weight, bias, eps)


def rotary(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate the leading dimensions of heads x [N, ..., H, D] by each row's angles [N, h]."""
    return reference.rotary(x, cosines, sines)


def activate(x: Tensor, activation: str, *, gated: bool = False) -> Tensor:
    """One of ACTIVATIONS of x [N, F], or where gated of the first half of [N, 2F], times the other half."""
    if cpu_ops.takes_floats(x):
        return cpu_ops.activate(x, activation, gated=gated)
    if gated and activation == "gelu_new":
        return gated_gelu(x)
    return reference.activate(x, activation, gated=gated)


def embed(ids: Tensor, table: Tensor, onto: Tensor | None = None) -> Tensor:
    """Rows of a table [., d] by id, int64 [N], added to `onto` [N, d]."""
    if cpu_ops.takes_floats(table) and (onto is None or cpu_ops.takes_floats(onto)):
        return cpu_ops.embed(ids, table, onto)
    return reference.embed(ids, table, onto)


def argmax(x: Tensor) -> Tensor:
    """The place of each row's largest number, the first of several: [N, d] -> int64 [N]."""
    return cpu_ops.argmax(x) if cpu_ops.takes_floats(x) else reference.argmax(x)


def scale(x: Tensor, factor: float) -> Tensor:
    """``x * factor``, of rows [N, d]."""
    if factor == 1.0:
        return x
    return cpu_ops.scale(x, factor) if cpu_ops.takes_floats(x) else x * factor


def gated_gelu(x: Tensor) -> Tensor:
    """[N, 2F] = [gate | linear] -> ``gelu_tanh(gate) * linear`` [N, F]."""
    if x.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.gated_gelu(x)
    return reference.gated_gelu(x)


def encoder_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    bias_table: Tensor | None,
    scale: float,
    windowed: bool = False,
    summaries: Summaries | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Bidirectional attention within packed sequences, q [N, H, D], k and v [N, G, D], with a bias by
    distance, which may hide what is far; and over keys that stand for blocks."""
    inputs = q, k, v, cu_seqlens, max_length, bias_table, scale, windowed, summaries, softcap
    if q.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.encoder_attention(*inputs)
    return reference.encoder_attention(*inputs)


def gather_rows(rows: Tensor, tables: DecodeTables, *, beams: bool) -> DecodeRows:
    """What the rows [4, N] of a decode step read and write."""
    if rows.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.gather_rows(rows, tables, beams=beams)
    if cpu_ops.COMPILED:
        return DecodeRows(*cpu_ops.gather_rows(rows, tables, beams=beams))
    return decode_rows.gather_rows(rows, tables, beams=beams)


def match_prompt_tokens(tokens: Tensor, rows: Tensor, sequences: Tensor) -> Tensor:
    """Moves sequences [4, R] on by what the model said, int64 [samples], and guesses what may follow."""
    if tokens.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.match_prompt_tokens(tokens, rows, sequences)
    if cpu_ops.COMPILED:
        return cpu_ops.match_prompt_tokens(tokens, rows, sequences)
    return decode_rows.match_prompt_tokens(tokens, rows, sequences)


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """Store k, v [N, H, D] in pages [pages, H, P, D] at slots [N] = page * P + offset."""
    if k.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        triton_ops.write_kv(k, v, k_pages, v_pages, slots)
    elif cpu_ops.takes(k, v) and cpu_ops.takes_pages(k_pages):
        cpu_ops.write_kv(k, v, k_pages, v_pages, slots)
    else:
        reference.write_kv(k, v, k_pages, v_pages, slots)


def paged_self_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    groups: RowGroups,
    bias_table: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """Causal attention of the newest rows of each sequence over its paged keys."""
    inputs = q, k_pages, v_pages, page_table, lengths, groups, bias_table, scale, softcap, sums
    if q.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.paged_self_attention(*inputs)
    if cpu_ops.takes(q) and cpu_ops.takes_pages(k_pages, groups):
        return cpu_ops.paged_attention(
            q, k_pages, v_pages, page_table, lengths, groups.cu_rows, bias_table, scale, softcap, sums,
            causal=True,
        )  # fmt: skip
    return reference.paged_self_attention(*inputs)


def paged_beam_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    cells: Tensor,
    lengths: Tensor,
    bias_table: Tensor | None,
    scale: float,
    softcap: float | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """Attention of each beam's newest row over its history, whose keys are anywhere in the pages."""
    inputs = q, k_pages, v_pages, cells, lengths, bias_table, scale, softcap, sums
    if q.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.paged_beam_attention(*inputs)
    if cpu_ops.takes(q) and cpu_ops.takes_pages(k_pages):
        each = RowGroups.each(len(q), q.device)
        return cpu_ops.paged_attention(
            q, k_pages, v_pages, cells, lengths, each.cu_rows, bias_table, scale, softcap, sums, causal=True,
            by_cell=True,
        )  # fmt: skip
    return reference.paged_beam_attention(*inputs)


def paged_cross_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    groups: RowGroups,
    scale: float,
    softcap: float | None = None,
    sums: Tensor | None = None,
) -> Tensor:
    """Attention of every row of a sequence over all its paged keys."""
    inputs = q, k_pages, v_pages, page_table, lengths, groups, scale, softcap, sums
    if q.is_cuda:
        from tandem.kernels.triton import ops as triton_ops

        return triton_ops.paged_cross_attention(*inputs)
    if cpu_ops.takes(q) and cpu_ops.takes_pages(k_pages, groups):
        return cpu_ops.paged_attention(
            q, k_pages, v_pages, page_table, lengths, groups.cu_rows, None, scale, softcap, sums,
            causal=False,
        )  # fmt: skip
    return reference.paged_cross_attention(*inputs)


def merge_attention(one: Tensor, one_sums: Tensor, other: Tensor, other_sums: Tensor) -> Tensor:
    """Two attentions [N, H, D] of the same queries as one over the keys of both, by their `sums` [N, H]."""
    return reference.merge_attention(one, one_sums, other, other_sums)
