"""What clients get who send more than a cluster can answer.

    python bench/overload.py [--seconds 60] [--out bench/results/overload.json] [--picture docs/overload.svg]
    python bench/overload.py --draw bench/results/overload.json [--picture docs/overload.svg]

A cluster with encoder passes that take no time and steps that compute nothing for 20 ms, whatever is in
them, as on a GPU; 32 sequences at once; answers of 40 to 120 tokens. First clients that wait for their
answers find what it can give. Then requests arrive at random, at 0.5, 1, 2 and 4 times that rate whether or
not others are answered: each with a deadline of 5 s; and without one, where `max_queue_wait_s` is 5 s.
Everything shares the machine's cores with the clients. `--draw` draws a result again and measures nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import machine
import numpy as np
from picture import Panel, picture
from rich.console import Console
from rich.table import Table
from simulated import SimulatedEncoder, simulated_decoder
from traffic import Ask, ask, cluster, counters

from tandem import AsyncClient, SamplingParams
from tandem.cluster.config import ServeConfig
from tandem.errors import Cancelled, DeadlineExceeded, Overloaded, TandemError

STEP_S = 0.020
SLOTS = 32
INPUTS = (10, 40)
OUTPUTS = (40, 121)  # the second is excluded
LOADS = (0.5, 1.0, 2.0, 4.0)
DEADLINE_S = 5.0
WAIT_S = 5.0
PATIENCE_S = 120.0  # of clients without a deadline
PAUSE_S = 3.0  # between loads, for the cluster to be done with the last one

End = Literal["whole", "cut", "refused", "late", "cancelled", "failed"]


@dataclass(frozen=True)
class Sent:
    end: End
    seconds: float  # from when it was due to be sent


async def send(client: AsyncClient, asked: Ask, timeout_s: float, due: float) -> Sent:
    params = SamplingParams(temperature=0, max_tokens=asked.tokens, ignore_eos=True)
    end: End
    try:
        answer = await client.generate({"prompt_token_ids": asked.ids}, params, timeout_s=timeout_s)
        end = "whole" if len(answer.outputs[0].token_ids) == asked.tokens else "cut"
    except Overloaded:
        end = "refused"
    except DeadlineExceeded as error:
        end = "refused" if "would take" in error.message else "late"
    except Cancelled:
        end = "cancelled"
    except TandemError:
        end = "failed"
    return Sent(end, time.perf_counter() - due)


async def capacity(client: AsyncClient, seconds: float, rng: random.Random) -> float:
    """Answers/s where two batches of clients send one request after another."""
    until, ends = time.perf_counter() + seconds, []

    async def one() -> None:
        while time.perf_counter() < until:
            sent = await send(client, a_request(rng), PATIENCE_S, time.perf_counter())
            assert sent.end == "whole", sent
            ends.append(time.perf_counter())

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(2 * SLOTS)))
    settled = start + seconds / 3
    return sum(settled <= end <= until for end in ends) / (until - settled)


async def offered(
    client: AsyncClient, rate: float, seconds: float, timeout_s: float, rng: random.Random
) -> list[Sent]:
    """Requests that are sent at random times, whether or not others are answered."""
    due, tasks = time.perf_counter(), []
    until = due + seconds
    while (due := due + rng.expovariate(rate)) < until:
        await asyncio.sleep(due - time.perf_counter())
        tasks.append(asyncio.create_task(send(client, a_request(rng), timeout_s, due)))
    return list(await asyncio.gather(*tasks))


def a_request(rng: random.Random) -> Ask:
    return ask(rng.randrange(*INPUTS), rng.randrange(*OUTPUTS), rng)


def figures(sent: Sequence[Sent], seconds: float, deadline_s: float | None) -> dict[str, Any]:
    ends = Counter(one.end for one in sent)

    def quantiles(*kinds: End) -> dict[str, float] | None:
        times = [one.seconds for one in sent if one.end in kinds]
        return {f"p{q}": round(float(np.percentile(times, q)), 4) for q in (50, 99)} if times else None

    late = [one.seconds - deadline_s for one in sent if deadline_s and one.end in ("cut", "late", "whole")]
    return {
        "per_s": {kind: round(count / seconds, 3) for kind, count in sorted(ends.items())},
        "whole_s": quantiles("whole"),
        "refusal_s": quantiles("refused"),
        "beyond_the_deadline_s": round(float(np.percentile(late, 99)), 4) if late else None,
    }


async def measure(address: str, seconds: float) -> dict[str, Any]:
    rng = random.Random(0)
    async with AsyncClient(address, timeout_s=PATIENCE_S) as client:
        most = await capacity(client, seconds / 2, rng)
        found: dict[str, Any] = {"capacity_per_s": round(most, 3)}
        for name, deadline_s in (("deadline", DEADLINE_S), ("no deadline", None)):
            found[name] = {}
            for load in LOADS:
                await asyncio.sleep(PAUSE_S)
                sent = await offered(client, load * most, seconds, deadline_s or PATIENCE_S, rng)
                found[name][str(load)] = figures(sent, seconds, deadline_s)
    return found


def drawn(result: dict[str, Any]) -> str:
    most, found = result["capacity_per_s"], result["deadline"]
    waiting = result["no deadline"]

    def over_load(values: dict[str, Any], name: str, quantile: str) -> list[tuple[float, float]]:
        shown = ((float(load), one[name]) for load, one in values.items())
        return [(load, one[quantile]) for load, one in shown if one is not None]

    def share(values: dict[str, Any]) -> list[tuple[float, float]]:
        return [(float(load), one["per_s"].get("whole", 0.0) / most) for load, one in values.items()]

    x = "requests sent / capacity"
    return picture(
        [
            Panel(
                "Whole answers / capacity",
                x,
                {"5 s deadline": share(found), "5 s longest wait": share(waiting)},
            ),
            Panel(
                "Seconds to the whole answer, 5 s deadline",
                x,
                {name: over_load(found, "whole_s", name) for name in ("p50", "p99")},
            ),
            Panel(
                "Milliseconds to a refusal",
                x,
                {
                    name: [(load, 1e3 * one) for load, one in over_load(found, "refusal_s", name)]
                    for name in ("p50", "p99")
                },
            ),
        ],
        "Whole answers, their time and that of refusals over the load that is offered",
    )


def main() -> None:
    parser = machine.parser(__doc__, "overload")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--picture", type=Path, default=Path(__file__).parents[1] / "docs" / "overload.svg")
    parser.add_argument("--draw", type=Path)
    args = parser.parse_args()
    if args.draw is not None:
        args.picture.write_text(drawn(json.loads(args.draw.read_text())))
        return
    console = Console()
    config = ServeConfig(max_num_seqs=SLOTS, max_queue_wait_s=WAIT_S, device="cpu")
    with cluster(config) as running:
        endpoints = running.deploy(config, encoder=SimulatedEncoder, decoder=simulated_decoder(STEP_S))
        found = asyncio.run(measure(endpoints.grpc[0], args.seconds))
        found["counters"] = {
            name: value
            for name, value in counters(endpoints).items()
            if name.startswith(("tandem_refused", "tandem_finished")) and name.endswith("_total")
        }
    table = Table("", "load", "whole/capacity", "p50, s", "p99, s", "cut/s", "refused/s", "ms, p99", "lost/s")
    for name in ("deadline", "no deadline"):
        for load, one in found[name].items():
            per_s, whole, refusal = one["per_s"], one["whole_s"], one["refusal_s"]
            table.add_row(
                name, load, f"{per_s.get('whole', 0) / found['capacity_per_s']:.2f}",
                *(f"{whole[q]:.2f}" if whole else "–" for q in ("p50", "p99")),
                f"{per_s.get('cut', 0) + per_s.get('late', 0):.2f}", f"{per_s.get('refused', 0):.1f}",
                f"{1e3 * refusal['p99']:.0f}" if refusal else "–",
                f"{per_s.get('cancelled', 0) + per_s.get('failed', 0):.2f}",
            )  # fmt: skip
    console.print(table)
    result = {"machine": machine.describe(), "seconds": args.seconds, **found}
    machine.write(args.out, result)
    args.picture.write_text(drawn(result))
    console.print(f"wrote {args.out} and {args.picture}")


if __name__ == "__main__":
    main()
