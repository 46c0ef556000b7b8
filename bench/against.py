"""This checkout against another one, in turns on one machine: what a change did to the speed.

    python bench/against.py OTHER [--rounds 12] [--only engine] [--only cluster] [--out FILE]

OTHER is the folder of another checkout with its `.venv`. Each has processes of its own, which use only names
that both have: `LLM`, the parameters, `AsyncClient`, `launch.serve`. Loads of the engine are those of
engine.py, of the random T5-small shape and the bundled model, in float32 and in 8 bits; of the cluster 32
clients, whole answers and streams, and the first token of one client. In every round both do the same
requests, each first in turn; after a third of the rounds both get new processes, whose places in memory make
some percent. A figure is the ratio of this checkout's tokens/s to the other's, or for first tokens of the
other's time to this checkout's: above 1 this one is ahead. Medians over rounds.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

BATCH = 32  # sequences at once
CLIENTS = 32
PROCESSES = 3  # of each checkout and setup, one after the other
SETTLED_S = 15.0  # a cluster's spare processes still import modules when it is ready
_TURNS = (0, 1), (1, 0)
ROOT = Path(__file__).resolve().parents[1]


# -- in a process of each checkout


def _engine(model: str, how: dict[str, Any]) -> Any:
    from tandem import LLM, BeamSearchParams, SamplingParams

    llm = LLM(model, **how, max_num_seqs=BATCH)

    def run(load: dict[str, Any]) -> float:
        """Tokens/s."""
        prompts = [{"prompt_token_ids": ids} for ids, _ in load["requests"]]
        params: list[Any] = []
        for _, tokens in load["requests"]:
            if load["beams"] > 1:
                params.append(
                    BeamSearchParams(num_beams=load["beams"], max_tokens=tokens or 64, min_tokens=tokens or 0)
                )
            else:
                params.append(SamplingParams(temperature=0, max_tokens=tokens or 64, ignore_eos=bool(tokens)))
        size = load["at_once"] if load["at_once"] <= BATCH // 4 else len(prompts)
        start, made = time.perf_counter(), 0
        for at in range(0, len(prompts), size):
            outputs = llm.generate(prompts[at : at + size], params[at : at + size], use_tqdm=False)
            made += sum(len(output.outputs[0].token_ids) for output in outputs)
        return made / (time.perf_counter() - start)

    return run


def _cluster(stack: ExitStack) -> Any:
    from tandem import AsyncClient, SamplingParams
    from tandem.cluster import launch
    from tandem.cluster.config import ServeConfig

    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    config = ServeConfig(max_num_seqs=BATCH, http_port=ports[0], grpc_port=ports[1])
    address = stack.enter_context(launch.serve(config)).endpoints().grpc[0]
    time.sleep(SETTLED_S)

    async def ask(load: dict[str, Any]) -> float:
        async with AsyncClient(address) as client:
            todo, made, first_s = iter(load["prompts"]), 0, []

            async def one() -> None:
                nonlocal made
                for prompt in todo:
                    params, start = SamplingParams(temperature=0, max_tokens=64), time.perf_counter()
                    if load["kind"] == "whole":
                        answer = await client.generate(prompt, params)
                        made += len(answer.outputs[0].token_ids)
                        continue
                    seen = 0
                    async for piece in client.stream(prompt, params):
                        if not seen:
                            first_s.append(time.perf_counter() - start)
                        seen += len(piece.token_ids)
                    made += seen

            start = time.perf_counter()
            await asyncio.gather(*(one() for _ in range(load["clients"])))
            taken = time.perf_counter() - start
        return 1 / sorted(first_s)[len(first_s) // 2] if load["kind"] == "first" else made / taken

    return lambda load: asyncio.run(ask(load))


def work() -> None:
    """Makes what the first line says, then answers a load a line with a rate."""
    kind, *how = json.loads(sys.stdin.readline())
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    with ExitStack() as stack:
        run = _cluster(stack) if kind == "cluster" else _engine(*how)
        print("null", file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(run(json.loads(line))), file=out, flush=True)


# -- in this one


class Worker:
    """A process of a checkout."""

    def __init__(self, checkout: Path, *what: Any) -> None:
        self._process = subprocess.Popen(
            [checkout / ".venv/bin/python", str(Path(__file__).resolve()), "--work"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=checkout,
        )  # fmt: skip
        self._say(what)

    def ready(self) -> None:
        self._hear()

    def do(self, load: dict[str, Any]) -> float:
        self._say(load)
        return float(self._hear())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)

    def _say(self, what: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def in_turns(
    checkouts: list[Path], what: list[Any], loads: list[dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """This checkout's rate over the other's, of each load by its name; `loads` are a round's each."""
    import machine

    rates: dict[str, list[list[float]]] = {}
    for at in range(PROCESSES):
        workers = {which: Worker(checkouts[which], *what) for which in _TURNS[at % 2]}
        try:
            for worker in workers.values():
                worker.ready()
            # The first round warms up.
            for number, by_name in enumerate([loads[0], *loads[1 + at :: PROCESSES]]):
                for name, load in by_name.items():
                    made = {which: workers[which].do(load) for which in _TURNS[number % 2]}
                    if number:
                        rates.setdefault(name, []).append([made[0], made[1]])
        finally:
            for worker in workers.values():
                worker.close()
    return {
        name: {
            "ratio": machine.spread([this / other for this, other in pairs]),
            "rate": machine.spread([this for this, _ in pairs]),
        }
        for name, pairs in rates.items()
    }


def _engine_loads(folder: Path, rounds: int) -> Iterator[tuple[str, list[Any], list[dict[str, Any]]]]:
    """Each with its title, what makes a worker for it, and the loads of its rounds, the first one's twice."""
    import engine_loads

    from tandem.quickstart import PATH as QUICKSTART

    engine_loads.make_model(folder)
    random_ids = engine_loads.RandomIds(engine_loads.SHAPES["T5-small"])
    # A load takes half a second and more: shorter ones differ by what else the machine does.
    for model, path, scale, make in (
        ("random T5-small", folder, 2, random_ids),
        ("quickstart", QUICKSTART, 8, engine_loads.Sentences()),
    ):
        loads = []
        for number in range(rounds + 1):
            rng = random.Random(number)
            loads.append(
                {
                    name: {
                        "at_once": at_once,
                        "beams": beams,
                        "requests": [[list(one.ids), one.tokens] for one in make.mixed(count, rng)],
                    }
                    for name, count, at_once, beams in (
                        ("1", scale * 4, 1, 1), ("8", scale * 16, 8, 1), ("stream", scale * 32, 32, 1),
                        ("beam 4", scale * 8, 8, 4),
                    )
                }
            )  # fmt: skip
        for precision, how in (("float32", {"dtype": "float32"}), ("int8", {"quantization": "int8"})):
            yield f"{model}, {precision}", ["engine", str(path), how], loads


def _cluster_loads(rounds: int) -> list[dict[str, Any]]:
    texts = [f"translate English to French: I have {n} books." for n in range(2, 600)]
    loads = {
        "whole": {"kind": "whole", "clients": CLIENTS, "prompts": texts[:512]},
        "stream": {"kind": "stream", "clients": CLIENTS, "prompts": texts[:512]},
        "first token": {"kind": "first", "clients": 1, "prompts": texts[512:576]},
    }
    return [loads] * (rounds + 1)


def main() -> None:
    import machine

    parser = machine.parser(__doc__, "against", rounds=12)
    parser.add_argument("other", type=Path)
    parser.add_argument("--only", action="append", choices=("engine", "cluster"))
    args = parser.parse_args()
    only = args.only or ["engine", "cluster"]
    checkouts = [ROOT, args.other.resolve()]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "engine" in only:
            for title, what, loads in _engine_loads(Path(folder), args.rounds):
                results[title] = in_turns(checkouts, what, loads)
        if "cluster" in only:
            results["cluster, quickstart"] = in_turns(checkouts, ["cluster"], _cluster_loads(args.rounds))
    other = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=args.other, check=True
    ).stdout.strip()
    for title, figures in results.items():
        for name, values in figures.items():
            ratio = values["ratio"]
            print(f"{title:28} {name:12} {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})")
    result = {"machine": machine.describe(), "other": other, "rounds": args.rounds, "loads": results}
    machine.write(args.out, result)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    work() if sys.argv[1:] == ["--work"] else main()
