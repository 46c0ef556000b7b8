"""Of `_cpu.cpp`: addresses are integers, 0 where there is none; strides and counts are of elements."""

def attend(
    q: int,
    out: int,
    k_pages: int,
    v_pages: int,
    table: int,
    cu_rows: int,
    lengths: int,
    bias: int,
    sums: int,
    sequences: int,
    heads: int,
    shared: int,
    dim: int,
    page: int,
    q_stride: int,
    table_stride: int,
    reach: int,
    scale: float,
    softcap: float,
    causal: bool,
    by_cell: bool,
    half: bool,
    threads: int,
    /,
) -> None: ...
def add_norm(
    x: int,
    residual: int,
    weight: int,
    bias: int,
    out: int,
    total: int,
    rows: int,
    width: int,
    eps: float,
    half: bool,
    threads: int,
    /,
) -> None: ...
def embed(ids: int, table: int, onto: int, out: int, rows: int, width: int, /) -> None: ...
def activate(x: int, out: int, rows: int, width: int, kind: int, gated: bool, threads: int, /) -> None: ...
def scale(x: int, out: int, rows: int, width: int, factor: float, /) -> None: ...
def argmax(x: int, out: int, rows: int, width: int, stride: int, threads: int, /) -> None: ...
def gather_rows(*addresses_then_numbers: int) -> None: ...
def match_prompt_tokens(tokens: int, rows: int, sequences: int, out: int, count: int, width: int) -> None: ...
def write_kv(
    k: int,
    v: int,
    k_pages: int,
    v_pages: int,
    slots: int,
    rows: int,
    heads: int,
    dim: int,
    page: int,
    k_stride: int,
    v_stride: int,
    half: bool,
    /,
) -> None: ...
def has_avx512() -> bool: ...
def float_size(outputs: int, inputs: int, /) -> int: ...
def float_pack(weight: int, packed: int, outputs: int, inputs: int, threads: int, /) -> None: ...
def float_linear(
    x: int,
    packed: int,
    bias: int,
    out: int,
    rows: int,
    outputs: int,
    inputs: int,
    stride: int,
    threads: int,
    /,
) -> None: ...
def int8_size(outputs: int, inputs: int, /) -> int: ...
def int8_pack(weight: int, packed: int, scales: int, outputs: int, inputs: int, threads: int, /) -> None: ...
def int8_linear(
    x: int,
    packed: int,
    scales: int,
    bias: int,
    out: int,
    rows: int,
    outputs: int,
    inputs: int,
    stride: int,
    threads: int,
    /,
) -> None: ...
def record(most: int, /) -> None: ...
def recorded() -> object: ...
def run(program: object, rows: int, /) -> None: ...
