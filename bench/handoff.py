"""What it costs to encode elsewhere: hidden states through the object store, and clips of speech.

    python bench/handoff.py MODEL [--rounds 3] [--out bench/results/handoff.json]

MODEL is a Whisper in transformers' format. The hidden states of one encoder input go from an encoder's tensor
to a decoder's on one machine, in the shapes of small models, Flan-T5-XL and a window of Whisper large-v3.
Then clips of about five seconds, of espeak-ng, which must be installed, CLIENTS at once through gRPC, in int8
and without times: an encoder and a decoder on one core each, or two decoders that encode for themselves. The
placements take turns; figures are medians over rounds with their extremes, latencies cover all clips of a
round.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import ray
import torch
import traffic
from placement import PLACEMENTS
from rich.console import Console
from speech import RATE, Load, Samples, spoken

from tandem import AsyncClient
from tandem.cluster.endpoints import Endpoints
from tandem.cluster.handoff import HiddenLoader, HiddenSlice, fetch, pack

SHAPES = (
    (32, 256, torch.float32),
    (512, 512, torch.float32),
    (512, 2048, torch.bfloat16),
    (512, 2048, torch.float32),
    (1500, 1280, torch.bfloat16),
    (1500, 1280, torch.float32),
)  # tokens, d_model, dtype
REPEATS = 20
CLIENTS = 8
CLIPS = 32  # in a round
CLIP_S = 5


def handoff() -> list[dict[str, Any]]:
    """Seconds from an encoder's tensor to a decoder's, through the object store of one node."""

    @ray.remote(num_cpus=0.1)
    class Producer:
        def make(self, tokens: int, width: int, dtype: torch.dtype) -> Any:
            return pack(torch.zeros(tokens, width, dtype=dtype))

    producer: Any = Producer.remote()
    rows = []
    for tokens, width, dtype in SHAPES:
        seconds, size = [], 0
        for _ in range(REPEATS):
            start = time.perf_counter()
            reference = producer.make.remote(tokens, width, dtype)
            fetched = asyncio.run(fetch(reference))
            hidden = HiddenLoader(0, HiddenSlice(reference, 0, tokens), fetched)()
            seconds.append(time.perf_counter() - start)
            size = hidden.numel() * hidden.element_size()
            del hidden, fetched, reference
        name = str(dtype).removeprefix("torch.")
        rows.append(
            {"tokens": tokens, "d_model": width, "dtype": name, "bytes": size}
            | {"seconds": machine.spread(seconds[2:])}
        )
    return rows


async def clips(endpoints: Endpoints, sounds: list[Samples]) -> dict[str, float]:
    """A round: CLIENTS that each send a clip after another."""
    todo, whole = iter(sounds[2:]), []
    async with AsyncClient(endpoints.grpc[0]) as client:

        async def send(sound: Samples) -> None:
            start = time.perf_counter()
            await client.transcribe((sound, RATE), language="en", temperature=0.0, timestamps=None)
            whole.append(time.perf_counter() - start)

        async def one() -> None:
            for sound in todo:
                await send(sound)

        for sound in sounds[:2]:  # the deployment's first
            await send(sound)
        whole.clear()
        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        seconds = time.perf_counter() - start
    return {
        "clips_per_s": len(whole) / seconds,
        "p50_s": float(np.quantile(whole, 0.5)),
        "p95_s": float(np.quantile(whole, 0.95)),
    }


def main() -> None:
    parser = machine.parser(__doc__, "handoff", rounds=3)
    parser.add_argument("model", type=Path, metavar="MODEL")
    args = parser.parse_args()
    console = Console()
    load = Load("clips", [spoken(CLIP_S, number) for number in range(CLIPS + 2)], args.rounds)
    configs = {
        name: traffic.one_core_each(model=str(args.model), quantization="int8", max_num_seqs=CLIENTS, **how)
        for name, how in PLACEMENTS.items()
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in configs}
    result: dict[str, Any] = {"machine": machine.describe(), "rounds": args.rounds, "clients": CLIENTS}
    result |= {"model": args.model.name, "clips": CLIPS, "clip_s": CLIP_S}
    with traffic.cluster(configs["disaggregated"]) as cluster:
        result["handoff"] = handoff()
        for number in range(args.rounds):
            for name in list(configs)[:: -1 if number % 2 else 1]:
                endpoints = cluster.deploy(configs[name])
                found[name].append(asyncio.run(clips(endpoints, load.again(number).clips)))
    pairs = zip(found["disaggregated"], found["colocated"], strict=True)
    result["placements"] = {
        name: {key: machine.spread([one[key] for one in rounds]) for key in rounds[0]}
        for name, rounds in found.items()
    } | {"ratio": machine.spread([one["clips_per_s"] / other["clips_per_s"] for one, other in pairs])}
    for row in result["handoff"]:
        console.print(
            f"hand-off of {row['tokens']} x {row['d_model']} {row['dtype']}, {row['bytes'] / 2**20:.2f} MiB: "
            f"{1e3 * row['seconds']['median']:.1f} ms"
        )
    for name in configs:
        rate, slow = (result["placements"][name][key]["median"] for key in ("clips_per_s", "p95_s"))
        console.print(f"{CLIENTS} clients, {name}: {rate:.2f} clips/s, 95 % within {slow:.2f} s")
    machine.write(args.out, result)
    console.print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
