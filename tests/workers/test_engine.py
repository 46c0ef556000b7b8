"""The engine's contract apart from its tokens, which tests/parity compares with transformers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import EOS, PAD, VOCAB, decoding, load_reference

from tandem.errors import HiddenStatesLost, InvalidRequest
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.engine import Engine
from tandem.workers.execution.encoder import Encoder
from tandem.workers.request import Delta, EncoderInput, EngineRequest, HiddenStates

PROMPTS = [(5, 9, 30, EOS), (77, 6, EOS), (12, 13, 14, 15, 16, 17, 18, EOS), (101, EOS)]


@pytest.fixture
def config(checkpoint: Callable[..., Path]) -> EngineConfig:
    return EngineConfig(str(checkpoint("flan")), max_num_seqs=8, page_size=4, check_invariants=True)


def request(
    number: int, *, hidden: HiddenStates | None = None, timeout_s: float | None = None, **options: Any
) -> EngineRequest:
    ids = PROMPTS[number % len(PROMPTS)]
    return EngineRequest(
        str(number), EncoderInput(str(ids), ids, hidden), (PAD,), decoding(**options), timeout_s=timeout_s
    )


def drain(engine: Engine) -> dict[str, list[Delta]]:
    deltas: dict[str, list[Delta]] = {}
    for _ in range(1000):
        if not engine.has_work:
            break
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    assert not engine.has_work
    return deltas


def tokens(deltas: list[Delta]) -> list[int]:
    assert [delta.last for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    return [token for delta in deltas for token in delta.token_ids]


@dataclass
class Kept:
    """Hidden states in this process. Lost where `states` is None."""

    handle: int
    states: torch.Tensor | None
    read: int = field(default=0)

    def __call__(self) -> torch.Tensor:
        self.read += 1
        if self.states is None:
            raise HiddenStatesLost("gone", field="encoder")
        return self.states


@pytest.mark.parametrize(
    ("field", "limits"),
    [
        ("max_encoder_length", {"max_encoder_length": 3}),
        ("max_decoder_length", {"max_decoder_length": 24}),
        ("max_tokens", {"num_pages": 7}),
    ],
)
def test_what_can_never_fit_is_refused_by_name(
    field: str, limits: dict[str, Any], config: EngineConfig
) -> None:
    engine = Engine(replace(config, **limits))
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(request(0))
    assert caught.value.field == field
    assert not engine.has_work


def test_limits_are_inclusive(config: EngineConfig) -> None:
    engine = Engine(replace(config, max_encoder_length=4, max_decoder_length=25, num_pages=8))
    engine.submit(request(0))
    assert len(tokens(drain(engine)["0"])) <= 24


def test_an_id_in_use_is_refused(config: EngineConfig) -> None:
    engine = Engine(config)
    engine.submit(request(0))
    with pytest.raises(InvalidRequest, match="request_id"):
        engine.submit(request(0))


def test_the_group_must_be_of_the_configured_size(config: EngineConfig) -> None:
    with pytest.raises(InvalidRequest, match="is 2, but the group has 1 ranks") as caught:
        Engine(replace(config, tensor_parallel_size=2), Group())
    assert caught.value.field == "tensor_parallel_size"


@pytest.mark.parametrize("overlap", [False, True])
def test_a_cancelled_request_gets_one_last_delta_and_its_pages_are_free(
    overlap: bool, config: EngineConfig
) -> None:
    engine = Engine(replace(config, overlap=overlap))
    for number in range(3):
        engine.submit(request(number, stop_ids=frozenset()))
    before = engine.stats().free_pages
    seen = [delta for _ in range(4) for delta in engine.step()]
    engine.cancel("1")
    deltas = drain(engine)
    assert [(delta.token_ids, delta.finish_reason) for delta in deltas["1"]] == [([], "cancelled")]
    assert all(not delta.last for delta in seen)
    for name in "02":
        assert deltas[name][-1].finish_reason == "length"
    assert engine.stats().free_pages == before == engine.stats().total_pages


def test_a_deadline_that_has_passed_ends_a_request(config: EngineConfig) -> None:
    engine = Engine(config)
    engine.submit(request(0, timeout_s=0.0))
    engine.submit(request(1, timeout_s=3600.0))
    deltas = drain(engine)
    assert [delta.finish_reason for delta in deltas["0"]] == ["deadline"]
    assert deltas["1"][-1].finish_reason in ("stop", "length")


def test_stop_ids_of_the_request_are_told_from_eos(config: EngineConfig) -> None:
    engine = Engine(config)
    engine.submit(request(0, stop_ids=frozenset()))
    answer = tokens(drain(engine)["0"])
    stop = answer[5]
    engine.submit(request(0, stop_ids=frozenset({EOS, stop})))
    deltas = drain(engine)["0"]
    assert tokens(deltas) == answer[: answer.index(stop) + 1]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)
    engine.submit(request(0, stop_ids=frozenset({stop}), eos_ids=frozenset({stop})))
    assert drain(engine)["0"][-1].stop_reason is None


def test_logprobs_are_transformers(config: EngineConfig) -> None:
    engine = Engine(config)
    for number in range(4):
        engine.submit(request(number, logprobs=number if number else None, temperature=0.7, seed=number))
    deltas = drain(engine)
    assert all(delta.logprobs is None for delta in deltas["0"])
    model = load_reference(Path(config.model))
    for number in range(1, 4):
        answer = tokens(deltas[str(number)])
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([PROMPTS[number]]),
                decoder_input_ids=torch.tensor([[PAD, *answer[:-1]]]),
                use_cache=False,
            ).logits[0]
        expected = logits.log_softmax(-1)
        entries = [entry for delta in deltas[str(number)] for entry in delta.logprobs or []]
        assert [entry.token_id for entry in entries] == answer
        for row, entry in zip(expected, entries, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-4)
            top = row.topk(number)
            assert [value for _, value in entry.top] == pytest.approx(top.values.tolist(), abs=1e-4)
            assert [token for token, _ in entry.top] == top.indices.tolist()


def test_stats(config: EngineConfig) -> None:
    engine = Engine(replace(config, max_num_seqs=2, max_batched_tokens=64))
    for number in range(3):
        engine.submit(request(number, stop_ids=frozenset()))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.max_running) == (2, 1, 2)
    assert stats.cross_pages == 2
    assert stats.total_pages - stats.free_pages == 2 + 2
    drain(engine)
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.generated_tokens == 3 * 24
    assert stats.encoded_tokens == sum(map(len, PROMPTS[:3]))
    assert stats.steps >= 48


# -- encoder output from elsewhere


def test_hidden_states_from_elsewhere_give_the_same_tokens(config: EngineConfig) -> None:
    """An engine without an encoder, the states encoded packed; one that has both kinds in a step."""
    engine = Engine(config)
    for number in range(4):
        engine.submit(request(number))
    expected = {name: tokens(deltas) for name, deltas in drain(engine).items()}
    states = (
        Encoder(config)
        .encode([EncoderInput("", tuple(ids)) for ids in PROMPTS])
        .split([len(ids) for ids in PROMPTS])
    )
    for with_encoder in (False, True):
        engine = Engine(replace(config, with_encoder=with_encoder))
        kept = [Kept(100 + number, part) for number, part in enumerate(states)]
        for number in range(4):
            own = with_encoder and number % 2 == 0
            engine.submit(request(number, hidden=None if own else kept[number]))
        assert {name: tokens(deltas) for name, deltas in drain(engine).items()} == expected
        assert [part.read for part in kept] == [int(not with_encoder or n % 2 == 1) for n in range(4)]


@pytest.mark.parametrize("overlap", [False, True])
def test_lost_hidden_states_end_their_readers_only(overlap: bool, config: EngineConfig) -> None:
    engine = Engine(replace(config, overlap=overlap))
    engine.submit(request(0))
    engine.submit(request(2))
    expected = drain(engine)
    lost = Kept(7, None)
    engine.submit(request(0))
    engine.submit(request(1, hidden=lost))
    engine.submit(request(5, hidden=lost))  # the same input
    engine.submit(request(2))
    deltas = drain(engine)
    for name in "15":
        (delta,) = deltas[name]
        assert isinstance(delta.error, HiddenStatesLost)
        assert (delta.token_ids, delta.finish_reason) == ([], None)
    assert {name: tokens(deltas[name]) for name in "02"} == {name: tokens(expected[name]) for name in "02"}
    assert engine.stats().free_pages == engine.stats().total_pages


def test_only_lost_hidden_states_make_a_step_that_is_not_launched(config: EngineConfig) -> None:
    engine = Engine(config)
    engine.submit(request(1, hidden=Kept(7, None)))
    (delta,) = engine.step()
    assert isinstance(delta.error, HiddenStatesLost)
    assert not engine.has_work


def test_the_encoder_packs_without_a_trace(config: EngineConfig) -> None:
    """Together, alone, in another order: the same hidden states, and transformers'."""
    encoder = Encoder(config)
    inputs = [EncoderInput("", tuple(ids)) for ids in PROMPTS]
    together = encoder.encode(inputs).split([len(ids) for ids in PROMPTS])
    reverse = encoder.encode(inputs[::-1]).split([len(ids) for ids in PROMPTS[::-1]])[::-1]
    model = load_reference(Path(config.model))
    for ids, packed, other in zip(PROMPTS, together, reverse, strict=True):
        assert packed.shape == (len(ids), encoder.d_model)
        with torch.no_grad():
            expected = model.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        for ours in (packed, other, encoder.encode([EncoderInput("", tuple(ids))])):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_engines_run(config: EngineConfig) -> None:
    engine = Engine(replace(config, dtype="bfloat16"))
    for number in range(4):
        engine.submit(request(number))
    answers = {name: tokens(deltas) for name, deltas in drain(engine).items()}
    assert len(answers) == 4
    assert all(0 <= token < VOCAB for answer in answers.values() for token in answer)
