"""Hidden states and their pooling against transformers' encoders, in float32, next to other requests."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import DECODER_VARIANTS, EOS, PAD, VARIANTS, load_reference
from parity import greedy, ranks_in_threads

from tandem import LLM, InvalidRequest
from tandem.inputs import TokensPrompt
from tandem.params import Pooling
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.execution.encoder import Encoder
from tandem.workers.request import EncoderInput, EngineRequest

Array = np.ndarray[Any, Any]
LENGTHS = (1, 2, 7, 33, 90, 149)
ENCODERS = [variant for variant in VARIANTS if variant not in DECODER_VARIANTS]


def prompts(model: Any) -> list[tuple[int, ...]]:
    rng = random.Random(29)
    size = min(100, model.get_input_embeddings().num_embeddings)
    return [(*(rng.randrange(2, size) for _ in range(length)), EOS) for length in LENGTHS]


@torch.no_grad()
def states_of(model: Any, ids: list[tuple[int, ...]]) -> list[Array]:
    """transformers' hidden states of each input by itself."""
    encoder = model.get_encoder()
    return [encoder(input_ids=torch.tensor([one])).last_hidden_state[0].numpy() for one in ids]


@torch.no_grad()
def pooled(model: Any, ids: list[tuple[int, ...]], pooling: Pooling) -> list[Array]:
    """transformers' hidden states of one padded batch, pooled over what its mask leaves."""
    longest = max(map(len, ids))
    padded = torch.tensor([[*one, *[PAD] * (longest - len(one))] for one in ids])
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids])
    states = model.get_encoder()(input_ids=padded, attention_mask=mask).last_hidden_state
    if pooling == "first":
        return list(states[:, 0].numpy())
    if pooling == "none":
        return [row[: len(one)].numpy() for row, one in zip(states, ids, strict=True)]
    weights = mask[:, :, None]
    return list(((states * weights).sum(1) / weights.sum(1)).numpy())


def assert_equal(found: list[Array], right: list[Array], atol: float = 1e-5) -> None:
    assert len(found) == len(right)
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def generated(
    engine: Engine, requests: list[EngineRequest], between: Callable[[], None]
) -> dict[str, list[int]]:
    """The requests' tokens, and `between` called after their second step."""
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    for step in itertools.count():
        if not engine.has_work:
            return answers
        for delta in engine.step():
            answers[delta.request_id] += delta.token_ids
        if step == 1:
            between()
    raise AssertionError("unreachable")


def rounding(model: Any, ids: list[tuple[int, ...]], exact: list[Array]) -> float:
    """How far states may be from the exact ones: random weights make rounding large in some families, where
    the limit is four times what transformers' own makes of them."""
    own = zip(states_of(model, ids), exact, strict=True)
    limit = max(1e-5, 4 * max(float(np.abs(one - other).max()) for one, other in own))
    assert limit < 1e-3
    return limit


@pytest.mark.parametrize("variant", ENCODERS)
def test_states_are_those_of_transformers(checkpoint: Callable[..., Path], variant: str) -> None:
    folder = checkpoint(variant)
    ids = prompts(model := load_reference(folder))
    exact = states_of(load_reference(folder, torch.float64), ids)
    encoder = Encoder(EngineConfig(str(folder), dtype="float32", device="cpu"))
    found = encoder.encode([EncoderInput(str(one), one) for one in ids]).split([len(one) for one in ids])
    assert_equal([one.numpy() for one in found], exact, rounding(model, ids, exact))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("variant", ["t5", "bart", "bert2gpt2", "t5gemma2"])
def test_between_the_steps_of_generations(checkpoint: Callable[..., Path], variant: str, ranks: int) -> None:
    folder = checkpoint(variant)
    ids = prompts(model := load_reference(folder))
    exact = states_of(load_reference(folder, torch.float64), ids)
    config = EngineConfig(
        str(folder), dtype="float32", device="cpu", check_invariants=True, max_num_seqs=8, page_size=8,
        tensor_parallel_size=ranks, max_encoder_length=160, max_decoder_length=48,
    )  # fmt: skip
    found: list[torch.Tensor] = []
    with ranks_in_threads(config) as (engine, _):

        def encode() -> None:
            found.append(engine.encode([EncoderInput(str(one), one) for one in ids]))

        requests = greedy(ids[:3], engine.spec.decoder_start_id)
        alone = generated(engine, requests, lambda: None)
        assert generated(engine, requests, encode) == alone
    states = found[0].split([len(one) for one in ids])
    assert_equal([one.numpy() for one in states], exact, rounding(model, ids, exact))


@pytest.mark.parametrize("variant", ["t5", "bert2bert", "t5gemma"])
@pytest.mark.parametrize("pooling", ["mean", "first", "none"])
def test_pooling(checkpoint: Callable[..., Path], variant: str, pooling: Pooling) -> None:
    folder = checkpoint(variant)
    model = load_reference(folder)
    ids = prompts(model)
    given = [TokensPrompt(prompt_token_ids=list(one)) for one in ids]
    with LLM(str(folder), dtype="float32", max_encoder_tokens=100) as llm:  # so that there are batches
        outputs = llm.embed(given, pooling)
        [alone] = llm.embed(given[2], pooling)
    assert [output.encoder_tokens for output in outputs] == [len(one) for one in ids]
    assert {output.embedding.dtype for output in outputs} == {np.dtype("float32")}
    assert_equal([output.embedding for output in outputs], pooled(model, ids, pooling))
    np.testing.assert_allclose(alone.embedding, outputs[2].embedding, rtol=1e-5, atol=1e-5)


def test_a_decoder_only_model_refuses(checkpoint: Callable[..., Path]) -> None:
    with LLM(str(checkpoint("gpt2")), dtype="float32") as llm:
        with pytest.raises(InvalidRequest, match="decoder-only: it has no encoder"):
            llm.embed("ba be")
        with pytest.raises(InvalidRequest, match="no encoder"):
            llm._engine.encode([EncoderInput("", (2,))])
        assert llm.generate("ba be")[0].finished, "the engine goes on"


def test_an_engine_whose_encoding_failed_says_so(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(str(checkpoint("t5")), dtype="float32", device="cpu")
    engine = Engine(config)
    monkeypatch.setattr(engine.runner, "encode", None)
    with pytest.raises(TypeError):
        engine.encode([EncoderInput("", (2, EOS))])
    with pytest.raises(Exception, match="failed before"):
        engine.step()
