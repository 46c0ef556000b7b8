"""`_cpu.cpp`. Every call checks its tensors' dtypes, shapes and layouts, and raises TypeError. Sizes that
several tensors share must be equal; a size or a row's distance is never passed as a number."""

from torch import Tensor

def attend(
    *,
    q: Tensor,  # float32 or bfloat16 [N, H, D], rows may lie apart
    k: Tensor,  # float32 [pages, G, P, D]
    v: Tensor,
    table: Tensor,  # int32 [S, M], rows may lie apart: pages; by_cell: cells
    lengths: Tensor,  # int32 [S]
    begins: Tensor | None,  # int32 [S]; None: 0. Not for causal attention
    cu_rows: Tensor,  # int32 [S + 1]
    scale: float,
    bias_table: Tensor | None,  # float32 [H, R + 1]
    softcap: float,  # 0: no cap
    sums: Tensor | None,  # float32 [N, H], written
    out: Tensor,  # like q, written
    causal: bool,
    by_cell: bool,
    threads: int,
) -> None: ...
def attend_inputs(
    *,
    q: Tensor,  # float32 or bfloat16 [N, H, D], as k and v; rows of them may lie apart
    k: Tensor,  # [M, G, D]
    v: Tensor,
    cu_seqlens: Tensor,  # int32 [S + 1], of the keys
    cu_rows: Tensor,  # int32 [S + 1], of the queries that read them; cu_seqlens where there is a bias
    bias_table: Tensor | None,  # float32 [H, 2R + 1]
    windowed: bool,
    summary_k: Tensor | None,  # [M, G, D]; these four come together
    summary_v: Tensor | None,
    summary_cu_seqlens: Tensor | None,  # int32 [S + 1]
    summary_bias_table: Tensor | None,  # float32 [H, 2R' + 1]
    block: int,  # positions that a summary stands for
    scale: float,
    softcap: float,  # 0: no cap
    integers: bool,  # of 16 bits, where they are faster
    out: Tensor,  # like q, written
    lanes: int,  # floats in a register: 16, 8 or 4, at most `most_lanes`
    threads: int,
) -> None: ...
def add_norm(
    *,
    x: Tensor,  # float32 or bfloat16 [N, d], as all others
    residual: Tensor | None,
    weight: Tensor,  # [d]
    bias: Tensor | None,  # [d]; None: RMSNorm
    eps: float,
    out: Tensor,
    sum: Tensor | None,  # with the residual
    threads: int,
) -> None: ...
def embed(*, ids: Tensor, table: Tensor, onto: Tensor | None, out: Tensor) -> None: ...
def activate(*, out: Tensor, gated: bool, x: Tensor, kind: int, threads: int) -> None: ...
def scale(*, x: Tensor, factor: float, out: Tensor) -> None: ...
def keep_rows(*, x: Tensor, keep: Tensor, out: Tensor) -> None: ...
def argmax(*, x: Tensor, out: Tensor, threads: int) -> None: ...
def logsumexp(
    *,
    x: Tensor,  # float32 [N, d], rows may lie apart
    stops: Tensor | None,  # int64 [N]
    out: Tensor,  # float32 [N, 1], written
    threads: int,
) -> None: ...
def ban_tokens(
    *,
    scores: Tensor,  # float32 [N, d], rows may lie apart, written
    ids: Tensor,  # int64 [S, n], below d
    rows: Tensor,  # int64 [N]
) -> None: ...
def apply_timestamp_rules(
    *,
    scores: Tensor,  # float32 [N, d], rows may lie apart, written
    history: Tensor,  # int64 [S, T]
    slots: Tensor,  # int64 [N]
    begins: Tensor,  # int64 [N, 1]
    counts: Tensor,  # int64 [N, 1]
    last_initial: Tensor,  # int64 [N, 1]
    first: int,
    text_end: int,
    without: int,
    threads: int,
) -> None: ...
def gather_rows(
    *,
    rows: Tensor,  # int64 [4, N]
    sequences: Tensor,
    self_pages: Tensor,
    beam_cells: Tensor | None,
    cross_pages: Tensor,
    cross_lengths: Tensor,
    cross_spans: Tensor | None,
    page_size: int,
    token_ids: Tensor,  # from here on `DecodeRows`, written
    positions: Tensor,
    write_slots: Tensor,
    history: Tensor,
    lengths: Tensor,
    row_cross_pages: Tensor,
    row_cross_lengths: Tensor,
    row_cross_begins: Tensor | None,  # with cross_spans
) -> None: ...
def match_prompt_tokens(*, tokens: Tensor, rows: Tensor, sequences: Tensor, out: Tensor) -> None: ...
def write_kv(
    *,
    k: Tensor,  # float32 or bfloat16 [N, G, D], rows may lie apart
    v: Tensor,
    k_pages: Tensor,  # float32 [pages, G, P, D]
    v_pages: Tensor,
    slots: Tensor,  # int64 [N]
) -> None: ...
def add_depthwise(
    *,
    x: Tensor,  # float32 or bfloat16 [items, H, W, C], as all others
    first: int,  # row of x
    weight: Tensor,  # [9, C]
    bias: Tensor,  # [C]
    out: Tensor,  # [items, rows, W, C], items may lie apart, written
    threads: int,
) -> None: ...
def alignment_scores(
    *,
    x: Tensor,  # float32 [H, N, M], overwritten
    scale: float,
    softcap: float,  # 0: no cap
    width: int,
    out: Tensor,  # float32 [N, columns], written
    threads: int,
) -> None: ...
def time_warp(*, x: Tensor, out: Tensor) -> None: ...  # float32 [N, M], int64 [N]
def has_avx512() -> bool: ...
def most_lanes() -> int: ...
def prefer_huge_pages(*, address: int, bytes: int) -> None: ...
def float_size(*, outputs: int, inputs: int) -> int: ...  # in floats
def float_pack(*, weight: Tensor, packed: Tensor, threads: int) -> None: ...
def float_linear(*, x: Tensor, out: Tensor, bias: Tensor | None, threads: int, packed: Tensor) -> None: ...
def int8_size(*, outputs: int, inputs: int) -> int: ...  # in bytes
def int8_pack(*, weight: Tensor, packed: Tensor, scales: Tensor, threads: int) -> None: ...
def int8_linear(
    *, x: Tensor, out: Tensor, bias: Tensor | None, threads: int, packed: Tensor, scales: Tensor
) -> None: ...
def int8_feed_forward(
    *,
    x: Tensor,  # float32 [N, d], rows may lie apart
    norm: Tensor | None,  # [d], LayerNorm's weight and bias, which come together
    norm_bias: Tensor | None,
    eps: float,
    out: Tensor,  # float32 [N, D], written; x, where d = D and add
    gated: bool,
    add: bool,  # to what `out` is
    kind: int,
    threads: int,
    up_scales: Tensor,  # [F], gated [2F]
    up_packed: Tensor,
    up_bias: Tensor | None,
    down_scales: Tensor,  # [D]
    down_packed: Tensor,
    down_bias: Tensor | None,
) -> None: ...
def record(*, most: int) -> None: ...
def recorded() -> object: ...
def run(*, program: object, rows: int) -> None: ...
