"""A simulated step computes nothing; everything around it is real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simulated import InstantEncoder, SimulatedEncoder, SimulatedRunner, simulated_decoder, simulated_llm

from tandem import SamplingParams
from tandem.cluster.app import application
from tandem.cluster.config import ServeConfig
from tandem.workers.config import EngineConfig
from tandem.workers.execution.encoder import Encoder
from tandem.workers.request import EncoderInput


def test_as_many_tokens_as_asked_for(checkpoint: Callable[..., Path]) -> None:
    folder = str(checkpoint("flan"))
    with simulated_llm(1e-4)(
        folder, dtype="float32", device="cpu", max_num_seqs=3, check_invariants=True
    ) as llm:
        assert isinstance(llm._engine.engine.runner, SimulatedRunner)
        asked = [1, 7, 3, 5, 2]
        outputs = llm.generate(
            [{"prompt_token_ids": [5, 6, 1]}] * 5,
            [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in asked],
            use_tqdm=False,
        )
    assert [len(output.outputs[0].token_ids) for output in outputs] == asked


def test_an_encoder_gives_as_many_hidden_states_as_a_real_one(checkpoint: Callable[..., Path]) -> None:
    config = EngineConfig.of(model=str(checkpoint("flan")), dtype="float32", device="cpu")
    simulated, real = InstantEncoder(config), Encoder(config)
    inputs = [EncoderInput("a", (5, 6, 1)), EncoderInput("b", (7, 1))]
    assert simulated.encode(inputs).shape == real.encode(inputs).shape
    assert not simulated.encode(inputs).any()
    assert real.encode(inputs).any()


def test_a_cluster_is_deployed_with_simulated_stages() -> None:
    decoder = simulated_decoder(0.01)
    app = application(ServeConfig(device="cpu"), encoder=SimulatedEncoder, decoder=decoder)
    _, *stages = app._bound_deployment.init_args
    classes = [stage._bound_deployment.func_or_class for stage in stages]
    assert [issubclass(*pair) for pair in zip(classes, (SimulatedEncoder, decoder), strict=True)] == [
        True
    ] * 2
