"""Where an encoding's time goes: each op's rate against that of large products of its precision.

    python bench/encoding.py [--rounds 7] [--out bench/results/encoding.json]

Encoder passes of random weights in the shapes of T5-small, T5-base and Whisper base, in float32 and in 8-bit
integers: one input of 512 and of 4,000 tokens, eight of 400, a window of 30 seconds. Every op is timed
without what runs inside it, so that the parts add up to the pass; "rest" is Python between them, and copies.
Attention counts every query with every key, in 4 operations a dimension. Figures are medians over the passes.

On a CPU only: on a GPU ops run behind the host's back.
"""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import machine
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from roofline import Clock, Work, product_rate
from transformers import T5Config, T5ForConditionalGeneration, WhisperConfig, WhisperForConditionalGeneration

from tandem import kernels
from tandem.kernels import Linear
from tandem.workers.distributed import Group
from tandem.workers.execution.encoder import encode_packed
from tandem.workers.models.attention import EncoderAttention
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.fronts.audio import AudioConvolutions
from tandem.workers.models.layers import Placement
from tandem.workers.models.stacks import EncoderStack, load_encoder
from tandem.workers.models.sublayers import FeedForward

PRECISIONS = ("float32", "int8")
_T5_BASE = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
# One decoder layer, which is not used.
MODELS: dict[str, Any] = {
    "T5-small": lambda: T5ForConditionalGeneration(T5Config(num_decoder_layers=1)),
    "T5-base": lambda: T5ForConditionalGeneration(T5Config(**_T5_BASE, num_decoder_layers=1)),
    "Whisper base": lambda: WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=512, encoder_layers=6, decoder_layers=1, encoder_attention_heads=8,
            decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048,
        )
    ),
}  # fmt: skip
LOADS = {"T5-small": ((1, 512), (1, 4000)), "T5-base": ((8, 400),), "Whisper base": ((1, 1500), (8, 1500))}
FIRST_ID = 10  # ids below may be special


def load(folder: Path, precision: str) -> EncoderStack:
    place = Placement(torch.device("cpu"), torch.float32, Group(), "int8" if precision == "int8" else None)
    return load_encoder(Checkpoint(folder), place)


def watch(clock: Clock, encoder: EncoderStack) -> None:
    """Times every op of this encoder's passes."""
    products: dict[int, tuple[str, int, int]] = {}  # by id: name, inputs, outputs
    spec = encoder.spec
    width = spec.heads * spec.head_dim

    for sublayer in chain(*encoder.layers):
        if isinstance(sublayer, EncoderAttention):
            products[id(sublayer.qkv.linear)] = "q, k, v", spec.d_model, 3 * width
            products[id(sublayer.o.linear)] = "attention's output", width, spec.d_model
        elif isinstance(sublayer, FeedForward):
            products[id(sublayer.up.linear)] = "feed-forward", spec.d_model, spec.d_ff * (1 + spec.gated)
            products[id(sublayer.down.linear)] = "feed-forward", spec.d_ff, spec.d_model
    if isinstance(front := encoder.embedding.front, AudioConvolutions):
        for one in front.convolutions:
            products[id(one.linear)] = "convolutions", 3 * one.inputs, one.outputs

    def multiply(linear: Linear, x: torch.Tensor, *_: object) -> Work:
        _, inputs, outputs = products[id(linear)]
        return 0.0, 2.0 * len(x) * inputs * outputs

    def attend(*given: Any) -> Work:
        lengths = np.diff(given[3].numpy())  # of the borders
        return 0.0, 4.0 * width * float((lengths.astype(np.float64) ** 2).sum())

    clock.watch(
        type(encoder.layers[0][0].o.linear), "__call__", lambda one, *_: products[id(one)][0], multiply
    )
    clock.watch(kernels, "encoder_attention", "attention", attend)
    clock.watch(kernels, "activate", "activation")
    for name in ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"):
        clock.watch(kernels, name, "norms")
    clock.watch(kernels, "embed", "embedding")


@torch.inference_mode()
def measure(encoder: EncoderStack, inputs: int, length: int, rounds: int, rate: float) -> dict[str, Any]:
    """A pass over so many inputs of so many positions."""
    front, features = encoder.spec.front, None
    ids = np.random.default_rng(0).integers(FIRST_ID, 1000, inputs * length)
    if front is not None:
        ids[:] = front.placeholder_id
        features = torch.rand(inputs, *front.features)
    lengths = np.full(inputs, length)
    clock, whole = Clock(), Clock()

    def run() -> None:
        vectors = None if features is None or encoder.front is None else encoder.front(features)
        encode_packed(encoder, ids, lengths, vectors)

    run()
    for _ in range(rounds):
        whole.step(run)
    watch(clock, encoder)
    try:
        for _ in range(rounds):
            clock.step(run)
    finally:
        clock.close()
    pass_s = median(sum(entry[0] for entry in step.values()) for step in whole.steps)
    ops = {}
    for op in clock.steps[0]:
        seconds = median(step[op][0] for step in clock.steps)
        operations = clock.steps[0][op][3]
        ops[op] = {"seconds": seconds, "operations": operations}
        if operations:
            ops[op] |= {"operations_per_s": operations / seconds, "of_products": operations / seconds / rate}
    total = sum(entry["seconds"] for entry in ops.values())
    for entry in ops.values():
        entry["share"] = entry["seconds"] / total
    return {
        "seconds": pass_s,
        "ops": dict(sorted(ops.items(), key=lambda item: -item[1]["seconds"])),
    }


def main() -> None:
    args = machine.parser(__doc__, "encoding", rounds=7).parse_args()
    console = Console()
    result: dict[str, Any] = {"machine": machine.describe(), "rounds": args.rounds, "models": {}}
    rates = result["product_operations_per_s"] = {name: product_rate(name) for name in PRECISIONS}
    for title, make in MODELS.items():
        loads = result["models"][title] = {}
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            make().save_pretrained(folder)
            encoders = {name: load(Path(folder), name) for name in PRECISIONS}
        for inputs, length in LOADS[title]:
            loads[f"{inputs} × {length}"] = by_precision = {
                name: measure(encoder, inputs, length, args.rounds, rates[name])
                for name, encoder in encoders.items()
            }
            console.print(table(f"{title}, {inputs} × {length}", by_precision))
    machine.write(args.out, result)
    console.print(f"wrote {args.out}")


def table(title: str, by_precision: dict[str, Any]) -> Table:
    made = Table("ms, share, GOP/s (of products')", *by_precision, title=title)
    for op in by_precision["float32"]["ops"]:
        made.add_row(op, *(cell(figures["ops"][op]) for figures in by_precision.values()))
    made.add_row("pass", *(f"{1e3 * figures['seconds']:.1f}" for figures in by_precision.values()))
    return made


def cell(entry: dict[str, float]) -> str:
    rate = ""
    if entry["operations"]:
        rate = f"  {entry['operations_per_s'] / 1e9:.0f} ({100 * entry['of_products']:.0f} %)"
    return f"{1e3 * entry['seconds']:.1f}  {100 * entry['share']:.0f} %{rate}"


if __name__ == "__main__":
    main()
