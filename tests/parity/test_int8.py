"""8-bit projections do what transformers does with every `nn.Linear` quantized in the same way, and with the
decoder's keys and values rounded to bfloat16, as they are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import load_reference, reference_greedy
from parity import Reference, greedy, ranks_in_threads, serve
from torch import Tensor, nn

from tandem.kernels.linear import quantize
from tandem.workers.engine import Engine

MAX_TOKENS = 24
# In standard deviations of the logits. A number halfway between two integers may be rounded to either, which
# weighs in models this small: a few answers may differ even where the lead is clear.
CLEAR = 0.02


def quantized_forward(linear: nn.Linear, x: Tensor) -> Tensor:
    values, scales = quantize(x.flatten(0, -2))
    weight, weight_scales = quantize(linear.weight)
    out = (values.double() @ weight.double().T) * (scales.unsqueeze(1) * weight_scales)
    out = out.to(x.dtype).unflatten(0, x.shape[:-1])
    return out if linear.bias is None else out + linear.bias


def rounded(linear: nn.Module, x: tuple[Tensor, ...], out: Tensor) -> Tensor:  # noqa: ARG001
    return out.bfloat16().to(out.dtype)


def quantized_reference(folder: Path) -> Any:
    model = load_reference(folder)
    for name, module in model.get_decoder().named_modules():
        if name.rpartition(".")[2] in ("k", "v", "k_proj", "v_proj"):
            module.register_forward_hook(rounded)
    return model


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("variant", ["t5", "flan", "bart", "marian"])
def test_greedy(
    reference: Callable[..., Reference],
    variant: str,
    ranks: int,
    checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = reference(variant)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", quantized_forward)
        answers, leads = reference_greedy(
            quantized_reference(checkpoint(variant)), prompts.prompts, MAX_TOKENS
        )
    requests = greedy(prompts.prompts, prompts.start)
    with ranks_in_threads(prompts.config(quantization="int8", tensor_parallel_size=ranks)) as (engine, _):
        got = serve(engine, requests)
    clear = [number for number, lead in enumerate(leads) if lead > CLEAR * ranks]
    assert len(clear) > 8
    if ranks == 1:
        same = sum(got[number] == answers[number] for number in clear)
        assert same >= 0.9 * len(clear), (same, len(clear))
    else:  # a rank quantizes its own part of the sum: the answers begin the same, and may differ later
        same = sum(got[number][:2] == answers[number][:2] for number in clear)
        assert same >= 0.8 * len(clear), (same, len(clear))


def test_an_answer_does_not_depend_on_the_batch(reference: Callable[..., Reference]) -> None:
    prompts = reference("t5")
    engine = Engine(prompts.config(quantization="int8"))
    together = serve(engine, greedy(prompts.prompts))
    alone = [serve(engine, [request])[0] for request in greedy(prompts.prompts)[:8]]
    assert alone == together[:8]
    assert together != prompts.answers, "float32 says the same: nothing was quantized"
