"""Clients of a cluster, and what the cluster says about itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tandem import AsyncClient, SamplingParams
from tandem.cluster import launch
from tandem.cluster.config import ServeConfig
from tandem.cluster.endpoints import Endpoints

VOCABULARY = 4000  # of the bundled model
EOS = 1


@dataclass(frozen=True)
class Ask:
    ids: list[int]  # of the encoder's input
    tokens: int  # to generate, exactly


@dataclass(frozen=True)
class Answer:
    """An answer's times, in seconds from when it was due to be sent. Without streaming the first token comes
    with the last."""

    first_s: float
    whole_s: float
    tokens: int
    chunks: int


def ask(inputs: int, outputs: int, rng: random.Random) -> Ask:
    """A request with these lengths; no two have the same input."""
    return Ask([rng.randrange(3, VOCABULARY) for _ in range(inputs - 1)] + [EOS], outputs)


async def send(client: AsyncClient, asked: Ask, *, streaming: bool, at: float | None = None) -> Answer:
    start, first, tokens, chunks = at or time.perf_counter(), 0.0, 0, 0
    params = SamplingParams(temperature=0, max_tokens=asked.tokens, ignore_eos=True)
    prompt = {"prompt_token_ids": asked.ids}
    if streaming:
        async for piece in client.stream(prompt, params):
            first = first or time.perf_counter()
            tokens += len(piece.token_ids)
            chunks += 1
    else:
        tokens = len((await client.generate(prompt, params)).outputs[0].token_ids)
        chunks = 1
    end = time.perf_counter()
    assert tokens == asked.tokens
    return Answer((first or end) - start, end - start, tokens, chunks)


async def in_turn(
    client: AsyncClient, asks: Sequence[Ask], clients: int, *, streaming: bool
) -> tuple[list[Answer], float]:
    """The answers to `clients` clients that each send one request after another; and the seconds it took."""
    todo, start = iter(asks), time.perf_counter()

    async def one() -> list[Answer]:
        return [await send(client, asked, streaming=streaming) for asked in todo]

    answers = await asyncio.gather(*(one() for _ in range(clients)))
    return [answer for some in answers for answer in some], time.perf_counter() - start


async def at_random(
    client: AsyncClient, asks: Sequence[Ask], rate: float, rng: random.Random, *, streaming: bool
) -> list[Answer]:
    """The answers to requests sent at random times, `rate` a second, whether or not others are answered."""
    at = time.perf_counter()
    tasks = []
    for asked in asks:
        at += rng.expovariate(rate)
        await asyncio.sleep(at - time.perf_counter())
        tasks.append(asyncio.create_task(send(client, asked, streaming=streaming, at=at)))
    return list(await asyncio.gather(*tasks))


def counters(endpoints: Endpoints) -> dict[str, float]:
    """`/metrics` by name, summed over labels."""
    with urllib.request.urlopen(f"http://{endpoints.http[0]}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#"):
            name, value = line.split("{")[0], line.rsplit(" ", 1)[1]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def one_core_each(**options: object) -> ServeConfig:
    """Workers that compute with one thread each."""
    return ServeConfig(encoder_cpus=1, decoder_cpus=1, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def cluster(config: ServeConfig) -> Iterator[launch.RunningCluster]:
    """A cluster without an application. Ray takes the machine for a larger one: its CPUs are what workers
    reserve, and two workers of one core each, with the ingress, do not fit two cores."""
    os.environ["RAY_OVERRIDE_RESOURCES"] = '{"CPU": 8}'
    with launch.RunningCluster(config) as running:
        yield running
