"""The queueing simulation against queueing theory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulation import FULL, MAX_ENCODER_TOKENS, Costs, Outcome, Shape, Simulation, Traffic

REAL = Costs(
    router_request=1e-3, router_message=2e-4, router_delta=2e-5, router_chunk=5e-5, encoder_step=2e-3,
    encoder_token=5e-5, decoder_step=3e-3, decoder_row=1e-4, decoder_token=1e-5, transport=5e-3,
)  # fmt: skip
TRAFFIC = Traffic((10, 40), (2, 20))
SHAPE = Shape(encoders=2, decoders=4, routers=3, slots=8)
RATE = 0.7 * SHAPE.decoders * REAL.decoder_rate(TRAFFIC, SHAPE.slots)


class Watched(Simulation):
    """Notes what arrivals find, and checks the books at each of them."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.found: list[int] = []  # live requests

    def _arrive(self, number: int) -> None:
        self.found.append(int(self.live.sum()))
        assert (self._in_flight >= 0).all()
        assert (self._own >= 0).all()
        for decoder in self._decoders:
            assert len(decoder.free) == len(set(decoder.free)) == int((decoder.left == 0).sum())
        super()._arrive(number)


def run(
    shape: Shape = SHAPE, costs: Costs = REAL, rate: float = RATE, count: int = 3000
) -> tuple[Watched, Outcome]:
    simulation = Watched(shape, costs, TRAFFIC, rate, count)
    return simulation, simulation.run()


def test_every_request_is_answered_once_with_all_its_tokens() -> None:
    simulation, outcome = run()
    assert simulation.delivered == simulation.outputs.sum()
    assert (outcome.arrived < outcome.first).all()
    assert (outcome.first < outcome.end).all()
    assert not simulation.live.any()
    assert not simulation._own.any()
    assert not any(simulation._to_encode)
    assert not any(simulation._to_place)


def test_equal_arguments_give_equal_outcomes() -> None:
    one, other = run(count=500)[1], run(count=500)[1]
    assert np.array_equal(one.end, other.end)


def test_a_lone_request_takes_the_sum_of_its_costs() -> None:
    simulation, outcome = run(Shape(1, 1, 1), rate=0.01, count=50)
    tokens, answers = simulation.inputs, simulation.outputs
    expected = (
        REAL.router_request + REAL.encoder_step + tokens * (REAL.encoder_token + REAL.decoder_token)
        + REAL.transport
        + answers * (REAL.decoder_step + REAL.decoder_row)
        + REAL.router_message + REAL.router_delta + REAL.router_chunk
    )  # fmt: skip
    assert outcome.end - outcome.arrived == pytest.approx(expected)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_router_alone_is_an_m_d_1_queue(load: float) -> None:
    """M/D/1: the mean wait is load / (2 (1 - load)) services."""

    class Alone(Watched):
        def _encode(self, number: int) -> None:
            self.end[number] = self.now

    costs = Costs(1e-3, *[0.0] * 9)
    outcome = Alone(Shape(1, 1, 1), costs, TRAFFIC, load / 1e-3, 40_000).run()
    wait = (outcome.end - outcome.arrived).mean() / 1e-3 - 1
    assert wait == pytest.approx(load / (2 * (1 - load)), rel=0.1)
    assert outcome.routers[0] == pytest.approx(load, rel=0.05)


def test_littles_law() -> None:
    """Random arrivals find as many requests as there are on average, their rate times their stay."""
    simulation, outcome = run(count=4000)
    settled = len(outcome.end) // 3
    stay = outcome.settled(outcome.end).mean()
    assert np.mean(simulation.found[settled:]) == pytest.approx(RATE * stay, rel=0.1)


def test_utilization_is_the_rate_times_the_work() -> None:
    _, outcome = run(count=4000)
    work = REAL.encoder_step + TRAFFIC.mean_input * REAL.encoder_token
    # Encoders' batches share the cost of a step.
    assert outcome.encoders.sum() <= 1.02 * RATE * work
    assert outcome.encoders.sum() >= 0.98 * RATE * TRAFFIC.mean_input * REAL.encoder_token
    assert outcome.tokens_per_s == pytest.approx(RATE * TRAFFIC.mean_output, rel=0.05)


def test_routers_work_as_computed() -> None:
    _, outcome = run(count=4000)
    assert REAL.router_load(SHAPE, TRAFFIC, RATE) == pytest.approx(outcome.routers.mean(), rel=0.15)


def test_overload_is_answered_at_the_decoders_rate() -> None:
    full = SHAPE.decoders * REAL.decoder_rate(TRAFFIC, SHAPE.slots)
    _, outcome = run(rate=3 * full, count=3000)
    assert outcome.tokens_per_s == pytest.approx(full * TRAFFIC.mean_output, rel=0.05)
    assert outcome.decoders.min() > 0.97


def test_an_engine_is_sent_no_more_than_the_router_gives_one() -> None:
    most = 0

    class Filled(Watched):
        def _step(self, number: int) -> None:
            nonlocal most
            most = max(most, self._decoders[number].load)
            super()._step(number)

    shape = Shape(encoders=2, decoders=2, routers=1, slots=4)
    Filled(shape, REAL, TRAFFIC, 1e4, 500).run()
    assert most == FULL * shape.slots


def test_what_arrives_during_a_batch_goes_into_the_next() -> None:
    batches: list[int] = []

    class Counted(Watched):
        def _encoded(self, what: tuple[int, int, list[int]]) -> None:
            batches.append(int(self.inputs[what[2]].sum()))
            super()._encoded(what)

    costs = replace(REAL, router_request=0.0)
    Counted(Shape(1, 1, 1), costs, TRAFFIC, 1e5, 1000).run()
    assert max(batches) <= MAX_ENCODER_TOKENS
    assert max(batches) > 0.9 * MAX_ENCODER_TOKENS
