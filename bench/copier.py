"""A model made by hand that copies its input or an extract of it, at any size: drafts gain by how much is
copied, which is known here.

It is an mBART whose sublayers add nothing, except the first cross-attention: that finds the input's token at
the output's own position, and says what the token stands for. A right token stands for itself, a wrong one
for a right one. So the right tokens of an input are copied and the others replaced. An extracting model's
output positions are those of every other span of the input. A step takes as long as any other model's of
this size.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import MBartConfig, MBartForConditionalGeneration

PAD, EOS = 1, 2  # as in the published ones
FIRST = 4  # the first token that is not special
OFFSET = 2  # of mBART's positions
SHARP = 8.0  # of attention's queries
LOUD = 8.0  # how much the copied token outweighs what was there before

# Of T5-small's size, and the smallest that still finds its tokens.
T5_SMALL = {
    "vocab_size": 32128, "d_model": 512, "encoder_layers": 6, "decoder_layers": 6,
    "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048, "max_position_embeddings": 256,
}  # fmt: skip
TINY = {
    "vocab_size": 132, "d_model": 96, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "max_position_embeddings": 256,
}  # fmt: skip


def make_copier(
    folder: Path, *, seed: int = 0, span: int | None = None, vocab_size: int = 32128, **config: int
) -> None:
    """Writes the checkpoint, without a tokenizer.

    config: mBART's.
    span: this many tokens are copied and as many left out, in turns; None: all are copied.
    """
    model = MBartForConditionalGeneration(
        MBartConfig(
            vocab_size=vocab_size, pad_token_id=PAD, bos_token_id=0, eos_token_id=EOS,
            decoder_start_token_id=EOS, forced_eos_token_id=None, scale_embedding=False, **config,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    # Thirds of a vector: what the token is, what it stands for, and where it is.
    width = model.config.d_model // 3

    def code(count: int) -> torch.Tensor:
        return torch.randint(2, (count, width), generator=generator) * 2.0 - 1

    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(float("norm" in name and name.endswith("weight")))
        tokens = model.get_input_embeddings().weight
        tokens[:, :width] = code(vocab_size)
        meant = [stands_for(token, vocab_size) for token in range(vocab_size)]
        tokens[:, width : 2 * width] = tokens[meant, :width]
        places = model.model.encoder.embed_positions.weight
        places[:, 2 * width : 3 * width] = code(len(places))
        model.model.decoder.embed_positions.weight.copy_(places)
        if span is not None:
            asked = places[OFFSET:, 2 * width : 3 * width].clone()
            places[:, 2 * width : 3 * width] = code(len(places))  # most of the rows are never read
            for at in range(len(asked)):
                turn, place = divmod(at, 2 * span)
                if place < span:
                    places[OFFSET + at, 2 * width : 3 * width] = asked[turn * span + place]
        finds = model.model.decoder.layers[0].encoder_attn
        for row in range(model.config.d_model):
            finds.q_proj.weight[row, 2 * width + row % width] = SHARP
            finds.k_proj.weight[row, 2 * width + row % width] = 1
        for row in range(width):
            finds.v_proj.weight[row, width + row] = 1
            finds.out_proj.weight[row, row] = LOUD
    model.generation_config.forced_eos_token_id = None
    model.save_pretrained(folder)


def stands_for(token: int, vocab_size: int) -> int:
    """What a token stands for: the first half of the vocabulary is right, the second wrong."""
    half = (vocab_size - FIRST) // 2
    return token - half if token >= FIRST + half else token


def source(length: int, wrong: float, vocab_size: int, rng: random.Random) -> list[int]:
    """An input of `length` tokens and EOS, with this share of wrong ones."""
    half = (vocab_size - FIRST) // 2
    return [FIRST + rng.randrange(half) + half * (rng.random() < wrong) for _ in range(length)] + [EOS]
