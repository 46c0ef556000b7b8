"""Trains the quickstart reader: a small TrOCR that reads a picture of one line of English.

    python examples/quickstart_ocr/train.py --data FILE [FILE ...] --out FOLDER

FILE is tab-separated with an English sentence first, as `tatoeba-en-de.tsv`. Lines are drawn as they are
needed, in fonts that `fonts.py` names, by another process, which takes a fifth of the machine. The run
lasts `--minutes` of training, can be stopped at any time and started again with the same arguments: it goes
on from its last checkpoint. FOLDER/model is written with every checkpoint. `evaluate.py` scores it.

Besides the text, the encoder learns which character is where, and some heads of the decoder learn to look
where the next character is: whoever draws a line knows. So little training goes far.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from pathlib import Path
from typing import Final

import torch
from fonts import faces
from render import HEIGHT, WIDTH, Line, image_processor, render
from scoring import CharacterErrors
from targets import IGNORED, PATCH, POSITIONS, TOKENS, Batch, Batches, Maker
from texts import Source
from tokenizer import IDS
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

# Heads of the decoder's cross-attention, as layer and head, that learn to look at one place.
READ_HEADS: Final = [[0, 0]]  # where the character is that a row reads
NEXT_HEADS: Final = [[1, 0], [1, 1]]  # where the character is that a row is to say
LEAST_MASS: Final = 1e-4  # of attention, below which its logarithm is cut
DEV_LINES: Final = 128


def make_config(vocabulary: int) -> VisionEncoderDecoderConfig:
    encoder = ViTConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=768,
        image_size=[HEIGHT, WIDTH], patch_size=[HEIGHT, PATCH],
    )  # fmt: skip
    decoder = TrOCRConfig(
        vocab_size=vocabulary, d_model=256, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=768,
        max_position_embeddings=TOKENS, dropout=0.0, bos_token_id=IDS.start, pad_token_id=IDS.pad,
        eos_token_id=IDS.end, decoder_start_token_id=IDS.start,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = IDS
    return config


def make_model(vocabulary: int) -> VisionEncoderDecoderModel:
    model = VisionEncoderDecoderModel(make_config(vocabulary))
    model.generation_config = GenerationConfig(
        bos_token_id=IDS.start, pad_token_id=IDS.pad, eos_token_id=IDS.end, decoder_start_token_id=IDS.start,
        max_length=TOKENS,
    )  # fmt: skip
    # Waves, so that what is next to a position is easily found from the first step on.
    places = model.encoder.embeddings.position_embeddings
    width = places.shape[2]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(1000.0) / width))
    angles = torch.arange(POSITIONS)[:, None] * rates
    with torch.no_grad():
        places[0, 1:] = 0.2 * torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
    return model


class Looks:
    """Watches heads of one layer's cross-attention: how much of what each row looks at is within its span."""

    def __init__(self, model: VisionEncoderDecoderModel, heads: list[list[int]]) -> None:
        (layer, _), *_ = heads
        self._attention = model.decoder.model.decoder.layers[layer].encoder_attn
        self._heads = [head for _, head in heads]
        self._rows: torch.Tensor | None = None
        self._attention.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(self, _: nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        self._rows = args[0] if args else kwargs["hidden_states"]

    def loss(self, states: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
        """Mean of -log of the attention within spans, over rows that have one, and heads."""
        attention = self._attention
        assert self._rows is not None
        batch, rows, width = self._rows.shape
        size = width // attention.num_heads
        keys = attention.k_proj(states).view(batch, -1, attention.num_heads, size)[:, :, self._heads]
        queries = attention.q_proj(self._rows).view(batch, rows, attention.num_heads, size)[:, :, self._heads]
        scores = torch.einsum("brhd,bphd->bhrp", queries, keys) * size**-0.5
        at = torch.arange(states.shape[1])
        within = (at >= spans[..., :1]) & (at < spans[..., 1:])
        mass = (scores.softmax(-1) * within[:, None]).sum(-1).clamp(min=LEAST_MASS)
        asked = (spans[..., 1] > spans[..., 0])[:, None].expand_as(mass)
        return -mass[asked].log().mean() if bool(asked.any()) else mass.sum() * 0


def encode(model: VisionEncoderDecoderModel, pixels: torch.Tensor, begin: int, end: int) -> torch.Tensor:
    """The encoder, of the positions from `begin` to `end` alone: [lines, 1 + positions, width], the first
    of which is no place in the picture."""
    embeddings = model.encoder.embeddings
    states = embeddings.patch_embeddings(pixels[..., begin * PATCH : end * PATCH])
    first = embeddings.cls_token.expand(len(pixels), -1, -1)
    places = embeddings.position_embeddings
    states = torch.cat([first, states], 1) + torch.cat([places[:, :1], places[:, 1 + begin : 1 + end]], 1)
    for layer in model.encoder.layers:
        states = layer(states)
    return model.encoder.layernorm(states)


def losses(
    model: VisionEncoderDecoderModel,
    read: Looks,
    next_: Looks,
    batch: Batch,
    smoothing: float,
    *,
    whole: bool,
) -> dict[str, torch.Tensor]:
    """whole: the encoder has all its positions; else those only that a picture of the batch has."""
    begin, end = (0, POSITIONS) if whole else (batch.begin, batch.end)
    states = encode(model, batch.pixels, begin, end)
    rows = model.decoder.model.decoder(
        input_ids=batch.ids, encoder_hidden_states=states, use_cache=False
    ).last_hidden_state
    tokens = model.decoder.output_projection
    seen = batch.seen[:, begin:end]
    written = seen != IGNORED
    spans = (batch.spans - begin + 1).clamp(min=1)
    return {
        "text": cross_entropy(
            tokens(rows).flatten(0, 1), batch.labels.flatten(), label_smoothing=smoothing
        ),
        "seen": cross_entropy(tokens(states[:, 1:][written]), seen[written]),
        "read": read.loss(states, torch.cat([torch.ones_like(spans[:, :1]), spans[:, :-1]], 1)),
        "next": next_.loss(states, spans),
    }  # fmt: skip


WEIGHTS: Final = {"text": 1.0, "seen": 0.5, "read": 0.2, "next": 0.3}


def schedule(done: float, warmup: float = 0.03) -> float:
    """The rate's factor by the share that is done: linear warm-up, then cosine to zero."""
    return min(done / warmup, 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def save_atomically(state: dict[str, object], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def export(
    model: VisionEncoderDecoderModel, mean: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> VisionEncoderDecoderModel:  # fmt: skip
    """Writes the checkpoint as served: float16 safetensors, tokenizer, image processor, configs."""
    served = VisionEncoderDecoderModel(model.config)
    served.generation_config = model.generation_config
    served.load_state_dict(mean, strict=False)  # tied weights are there once
    served.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return served.float().eval()


@torch.no_grad()
def character_errors(model: VisionEncoderDecoderModel, maker: Maker, lines: list[Line]) -> CharacterErrors:
    """The errors of transformers' greedy decoding."""
    found = CharacterErrors()
    for start in range(0, len(lines), 64):
        some = lines[start : start + 64]
        ids = model.generate(maker.pixels(some), do_sample=False, num_beams=1)
        for line, text in zip(some, maker.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            found.add(line.text, text)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of English sentences")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and the model")
    parser.add_argument(
        "--minutes", type=float, default=70, help="of training, on as many processors as threads"
    )
    parser.add_argument("--every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--batch-positions", type=int, default=2500, help="encoder positions a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak rate (AdamW)")
    parser.add_argument("--average", type=float, default=0.999, help="decay of the weights' running mean")
    parser.add_argument("--label-smoothing", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    maker, rng = Maker(), random.Random(args.seed)
    dev_source, dev_fonts = Source(args.data, "dev"), faces(held_out=True)
    dev = [
        render(dev_source.draw(rng), rng.choice(dev_fonts), rng, noisy=number % 2 == 1)
        for number in range(DEV_LINES)
    ]
    model = make_model(len(maker.tokenizer))
    read, next_ = Looks(model, READ_HEADS), Looks(model, NEXT_HEADS)
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": 0.02},
            {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
        ],
        lr=args.lr, betas=(0.9, 0.98),
    )  # fmt: skip
    # What is exported: a running mean of the weights is better than any of them.
    mean = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    spent_s, step = 0.0, 0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        mean, spent_s, step = state["mean"], state["spent_s"], state["step"]
        print(f"resumed after {spent_s / 60:.1f} minutes, step {step}", flush=True)

    whole_s, saved_s, lines = args.minutes * 60, spent_s, 0
    averages: dict[str, float] = {}
    rng = random.Random(f"{args.seed} {step}")
    made = DataLoader(
        Batches(args.data, args.batch_positions, args.seed, step), batch_size=None, num_workers=1
    )
    for batch in made:
        if spent_s >= whole_s:
            break
        began = time.process_time()
        done = spent_s / whole_s
        for parameters in optimizer.param_groups:
            parameters["lr"] = args.lr * schedule(done)
        # Parts of a window are cheaper; what the model is used on is whole ones.
        found = losses(
            model, read, next_, batch, args.label_smoothing, whole=rng.random() < 0.05 + 0.4 * done**2
        )
        loss = torch.stack([WEIGHTS[name] * value for name, value in found.items()]).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, lines = step + 1, lines + len(batch.ids)
        decay = min(args.average, step / (step + 10))
        for name, weight in model.named_parameters():
            mean[name].lerp_(weight.detach(), 1 - decay)
        for name, value in found.items():
            averages[name] = 0.98 * averages.get(name, value.item()) + 0.02 * value.item()
        # A processor's time: what else the machine does, and pauses, take nothing from a run.
        spent_s += (time.process_time() - began) / args.threads
        if step % 20 == 0:
            shown = ", ".join(f"{name} {value:.3f}" for name, value in averages.items())
            print(f"{spent_s / 60:.1f} min, step {step}, {lines} lines: {shown}", flush=True)
        if spent_s - saved_s >= args.every * 60 or spent_s >= whole_s:
            saved_s = spent_s
            state = {
                "model": model.state_dict(), "mean": mean, "optimizer": optimizer.state_dict(),
                "spent_s": spent_s, "step": step,
            }  # fmt: skip
            save_atomically(state, checkpoint)
            served = export(model, mean, maker.tokenizer, args.out / "model")
            rate = character_errors(served, maker, dev).rate
            print(f"{spent_s / 60:.1f} min: character error rate {rate:.1f} %", flush=True)


if __name__ == "__main__":
    main()
