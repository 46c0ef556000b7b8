"""Any combination of what a spec may say: a sequence's answer does not depend on who shares its batch.

Packed with others, each for itself, and (for a decoder) in pieces: the same to rounding. What the options
mean is for the parity tests to check; here is that none breaks in another's company.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from filled_stacks import HEAD_DIM, LONGEST, PLACE, VOCAB, Sequences, filled, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.kernels import ACTIVATIONS
from tandem.workers.models.spec import ModelSpec, PositionTable, RelativeBias, Rotary, StackSpec, Window
from tandem.workers.models.stacks import DecoderStack, EncoderStack


def layer_lists(layers: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.sampled_from(range(layers)), min_size=1, unique=True).map(tuple)


@st.composite
def stacks(draw: st.DrawFn, *, decodes: bool, alone: bool = False) -> StackSpec:
    layers, heads = draw(st.integers(1, 3)), draw(st.sampled_from([2, 4]))
    after = st.just(0) if decodes else st.integers(0, 9)
    window = st.builds(Window, st.integers(0, 9), after)
    rotary = st.builds(
        Rotary, st.sampled_from([2, HEAD_DIM]), st.sampled_from([10.0, 1e4]), st.sampled_from([1.0, 8.0])
    )
    table = st.builds(
        PositionTable,
        st.sampled_from(["learned", "sinusoidal", "sinusoidal_tensor2tensor"]),
        st.integers(0, 2),
    )
    positions = draw(st.none() | table)
    relative = draw(st.none() | st.builds(RelativeBias, st.just(8), st.sampled_from([5, 20]), st.booleans()))
    return StackSpec(
        vocab_size=VOCAB,
        layers=layers,
        d_model=draw(st.sampled_from([8, 12])),
        heads=heads,
        kv_heads=draw(st.sampled_from([None, 1, 2])),
        head_dim=HEAD_DIM,
        d_ff=draw(st.sampled_from([8, 20])),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        gated=draw(st.booleans()),
        bias=draw(st.booleans()),
        norm=draw(st.sampled_from(["rms", "rms_plus_one", "layer"])),
        norm_eps=1e-6,
        post_norm=draw(st.booleans()) and not alone,
        output_norm=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        parallel_residual=alone,
        attention_scale=draw(st.sampled_from([0.5, 1.0])),
        softcap=draw(st.sampled_from([None, 1.5])),
        merged_attention=(merged := decodes and not alone and draw(st.booleans())),
        cross_layers=None if merged or not decodes else draw(st.none() | layer_lists(layers)),
        embedding_scale=draw(st.sampled_from([1.0, 2.5])),
        embedding_norm=draw(st.sampled_from([None, "sum", "tokens"])),
        token_types=draw(st.sampled_from([0, 2])) if positions else 0,
        max_positions=LONGEST,
        positions=positions,
        relative_bias=relative,
        windows=draw(st.just(()) | st.tuples(*[st.none() | window] * layers)),
        summary_block=None if decodes or relative is None else draw(st.sampled_from([None, 2, 5])),
        rotary=(base := draw(st.none() | rotary)),
        window_rotary=None if base is None else draw(st.none() | rotary),
    )


@st.composite
def models(draw: st.DrawFn) -> tuple[ModelSpec, bool]:
    """A model, and whether its output is its embedding."""
    alone = draw(st.booleans())
    encoder = None if alone else draw(stacks(decodes=False))
    decoder = draw(stacks(decodes=True, alone=alone and draw(st.booleans())))
    if alone:
        decoder = replace(decoder, merged_attention=False)
    spec = ModelSpec(
        family="any",
        encoder=encoder,
        decoder=decoder,
        enc_to_dec_proj=encoder is not None and draw(st.booleans()),
        output_transform=draw(st.none() | st.sampled_from(sorted(ACTIVATIONS))),
        logit_scale=draw(st.sampled_from([1.0, 0.3])),
        logit_softcap=draw(st.sampled_from([None, 3.0])),
        output_bias=draw(st.booleans()),
        decoder_start_id=0,
        pad_id=0,
        eos_ids=(1,),
    )
    return spec, draw(st.booleans())


# Lengths of sequences that share a batch.
LENGTHS = st.lists(st.integers(1, LONGEST), min_size=2, max_size=4)
EXAMPLES = settings(max_examples=60)


def encode(encoder: EncoderStack, inputs: list[torch.Tensor]) -> torch.Tensor:
    return encoder(torch.cat(inputs), [len(one) for one in inputs])


@given(stacks(decodes=False), LENGTHS)
@EXAMPLES
def test_any_encoder(spec: StackSpec, lengths: list[int]) -> None:
    encoder, inputs = filled(EncoderStack(spec, PLACE)), tokens(lengths)
    alone = torch.cat([encode(encoder, [one]) for one in inputs])
    assert alone.isfinite().all()
    torch.testing.assert_close(encode(encoder, inputs), alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(encode(encoder, inputs[::-1])[: lengths[-1]], alone[-lengths[-1] :],
                               rtol=1e-3, atol=1e-4)  # fmt: skip


@given(models(), LENGTHS, st.integers(1, 7))
@EXAMPLES
def test_any_decoder(model: tuple[ModelSpec, bool], lengths: list[int], piece: int) -> None:
    """All in one step; one sequence after the other; and a few tokens of each at a time."""
    spec, tied = model
    inputs, count = tokens(lengths), len(lengths)
    hidden = []
    if spec.encoder is not None:
        encoder = filled(EncoderStack(spec.encoder, PLACE))
        hidden = list(encode(encoder, inputs[::-1]).split(lengths[::-1]))
    decoder = filled(DecoderStack(spec, tied, PLACE))
    together = Sequences(decoder, spec, hidden, count).step(dict(enumerate(inputs)))
    assert all(logits.isfinite().all() for logits in together)

    alone, pieces = (Sequences(decoder, spec, hidden, count) for _ in range(2))
    for number, ids in enumerate(inputs):
        (logits,) = alone.step({number: ids})
        torch.testing.assert_close(logits, together[number], rtol=1e-3, atol=1e-3)
    found: list[list[torch.Tensor]] = [[] for _ in inputs]
    for start in range(0, max(lengths), piece):
        parts = {n: ids[start : start + piece] for n, ids in enumerate(inputs) if len(ids) > start}
        for number, logits in zip(parts, pieces.step(parts), strict=True):
            found[number].append(logits)
    for number, logits in enumerate(together):
        torch.testing.assert_close(torch.cat(found[number]), logits, rtol=1e-3, atol=1e-3)
