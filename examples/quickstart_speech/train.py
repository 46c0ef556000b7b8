"""Trains the quickstart speech model: a small Whisper that transcribes short clips of English.

    python examples/quickstart_speech/train.py --data FILE [FILE ...] --clips FOLDER --out FOLDER

FILE is as `synthesize.py` has it, whose features are in FOLDER of `--clips`; both may run at the same time.
The run lasts `--minutes` of training, can be stopped at any time and started again with the same arguments:
it goes on from its last checkpoint. FOLDER/model is written with every checkpoint. `evaluate.py` scores it.

Besides the text, the encoder learns which sound and which token is where, and some heads of the decoder learn
to look where the next token is said: eSpeak says when it says what. So little training goes far, and the
model's alignment heads find the times of words.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import Final

import torch
from clips import MELS, POSITIONS, Clip, feature_extractor, load_clips
from phrases import Source, texts
from scoring import WordErrors
from targets import IGNORED, LONGEST, Batch, Maker, batches
from tokenizer import Ids, ids_of, train_tokenizer
from torch import nn
from torch.nn.functional import cross_entropy, gelu
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

# Heads of the decoder's cross-attention, as layer and head, that learn to look at one place.
SAID_HEADS: Final = [[0, 0]]  # where the token is said which a row reads
ALIGNMENT_HEADS: Final = [[1, 0], [1, 1]]  # where the token is said which a row is to say
SOUNDS: Final = 128  # eSpeak has fewer in English
FILES_A_ROUND: Final = 4
LEAST_MASS: Final = 1e-4  # of attention, below which its logarithm is cut


def make_config(ids: Ids, vocabulary: int) -> WhisperConfig:
    return WhisperConfig(
        vocab_size=vocabulary, num_mel_bins=MELS, d_model=256, encoder_layers=4, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=768, decoder_ffn_dim=768,
        max_source_positions=POSITIONS, max_target_positions=LONGEST, pad_token_id=ids.end,
        bos_token_id=ids.end, eos_token_id=ids.end, decoder_start_token_id=ids.start, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip


def make_generation_config(ids: Ids) -> GenerationConfig:
    """As the published models have it, but nothing is suppressed at the beginning: where nobody speaks, the
    answer is empty."""
    return GenerationConfig(
        bos_token_id=ids.end, eos_token_id=ids.end, pad_token_id=ids.end, decoder_start_token_id=ids.start,
        max_length=LONGEST, is_multilingual=True, lang_to_id={"<|en|>": ids.english},
        task_to_id={"transcribe": ids.transcribe}, no_timestamps_token_id=ids.no_times,
        prev_sot_token_id=ids.before, return_timestamps=False, alignment_heads=ALIGNMENT_HEADS,
        suppress_tokens=[*range(ids.start, ids.no_times)], begin_suppress_tokens=None,
    )  # fmt: skip


class Looks:
    """Watches heads of one layer's cross-attention: how much of what each row looks at is within its span."""

    def __init__(self, model: WhisperForConditionalGeneration, heads: list[list[int]]) -> None:
        (layer, _), *_ = heads
        self._attention = model.model.decoder.layers[layer].encoder_attn
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


def encode(model: WhisperForConditionalGeneration, mel: torch.Tensor) -> torch.Tensor:
    """The encoder, of windows of any length."""
    encoder = model.model.encoder
    states = gelu(encoder.conv2(gelu(encoder.conv1(mel)))).transpose(1, 2)
    states = states + encoder.embed_positions.weight[: states.shape[1]]
    for layer in encoder.layers:
        states = layer(states, None)
    return encoder.layer_norm(states)


def losses(
    model: WhisperForConditionalGeneration,
    sounds: nn.Linear,
    said: Looks,
    next_: Looks,
    batch: Batch,
    smoothing: float,
) -> dict[str, torch.Tensor]:
    states = encode(model, batch.mel)
    rows = model.model.decoder(
        input_ids=batch.ids, encoder_hidden_states=states, use_cache=False
    ).last_hidden_state
    said_there = batch.heard != IGNORED
    return {
        "text": cross_entropy(
            model.proj_out(rows).flatten(0, 1), batch.labels.flatten(), label_smoothing=smoothing
        ),
        "sounds": cross_entropy(sounds(states).flatten(0, 1), batch.sounds.flatten()),
        "heard": cross_entropy(model.proj_out(states[said_there]), batch.heard[said_there], reduction="sum")
        / max(1, int(said_there.sum())),
        "said": said.loss(states, torch.cat([torch.zeros_like(batch.spans[:, :1]), batch.spans[:, :-1]], 1)),
        "next": next_.loss(states, batch.spans),
    }


WEIGHTS: Final = {"text": 1.0, "sounds": 0.5, "heard": 0.5, "said": 0.2, "next": 0.3}


def schedule(done: float, warmup: float = 0.03) -> float:
    """The rate's factor by the share that is done: linear warm-up, then cosine to zero."""
    return min(done / warmup, 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def save_atomically(state: dict[str, object], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def export(
    model: WhisperForConditionalGeneration, mean: dict[str, torch.Tensor], tokenizer: WhisperTokenizer,
    folder: Path,
) -> WhisperForConditionalGeneration:  # fmt: skip
    """Writes the checkpoint as served: float16 safetensors, tokenizer, feature extractor, configs."""
    served = WhisperForConditionalGeneration(model.config)
    served.generation_config = model.generation_config
    served.load_state_dict(mean, strict=False)  # tied weights are there once
    served.half().save_pretrained(folder)
    for name in ("is_local", "local_files_only"):  # of where it was read from
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(folder)
    feature_extractor().save_pretrained(folder)
    return served.float().eval()


@torch.no_grad()
def word_errors(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, maker: Maker, clips: list[Clip]
) -> WordErrors:
    """The errors of transformers' greedy decoding without times. They are suppressed: a model that has learnt
    little says them all the same, and is asked again and again for what comes after them."""
    found, ids = WordErrors(), ids_of(tokenizer)
    no_text = [*range(ids.start, len(tokenizer))]
    for start in range(0, len(clips), 64):
        some = clips[start : start + 64]
        mel = maker.batch(some, [], random.Random(0), whole=True).mel
        said = model.generate(
            mel, language="en", max_new_tokens=100, do_sample=False, num_beams=1, suppress_tokens=no_text
        )
        for clip, text in zip(some, tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
            found.add(" ".join(segment.text for segment in clip.segments), text)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of English sentences")
    parser.add_argument("--clips", type=Path, required=True, help="features, by synthesize.py")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and the model")
    parser.add_argument("--init", type=Path, help="checkpoint.pt of another run, perhaps with other tokens")
    parser.add_argument("--frozen", type=int, default=0, help="lower layers of the encoder that stay")
    parser.add_argument("--uncropped", type=float, default=0.3, help="share of clips with all their pauses")
    parser.add_argument(
        "--sentences", type=float, default=1.0, help="share of the clips of sentences that is used"
    )
    parser.add_argument(
        "--whole", type=float, nargs=2, default=(0.05, 0.45), metavar=("FIRST", "LAST"),
        help="share of batches of whole windows, at the beginning and the end",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=float, default=90, help="of training, on as many processors as threads"
    )
    parser.add_argument("--steps", type=int, help="that the run ends after, if its minutes are not over")
    parser.add_argument("--every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--batch-frames", type=int, default=5000, help="frames a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak rate (AdamW)")
    parser.add_argument("--average", type=float, default=0.999, help="decay of the weights' running mean")
    parser.add_argument("--label-smoothing", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    source = Source(args.data, "train")
    folder = args.out / "tokenizer"
    if not folder.exists():
        train_tokenizer(texts(source, random.Random(args.seed), 20_000)).save_pretrained(folder)
    tokenizer = WhisperTokenizer.from_pretrained(folder, local_files_only=True)
    ids = ids_of(tokenizer)
    maker = Maker(tokenizer, ids)
    dev = load_clips(args.clips / "dev-00000.json")
    model = WhisperForConditionalGeneration(make_config(ids, len(tokenizer)))
    model.generation_config = make_generation_config(ids)
    sounds = nn.Linear(model.config.d_model, SOUNDS)
    said, next_ = Looks(model, SAID_HEADS), Looks(model, ALIGNMENT_HEADS)
    weights = [*(w for w in model.parameters() if w.requires_grad), *sounds.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": 0.02},
            {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
        ],
        lr=args.lr, betas=(0.9, 0.98),
    )  # fmt: skip
    # The optimizer passes over what has no gradients.
    encoder = model.model.encoder
    for part in (encoder.conv1, encoder.conv2, *encoder.layers)[: args.frozen and args.frozen + 2]:
        part.requires_grad_(False)
    # What is exported: a running mean of the weights is better than any of them.
    mean = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    spent_s, step = 0.0, 0
    seen: Counter[str] = Counter()  # passes over each file
    if args.init:
        state = torch.load(args.init)
        maker.sounds = state["names"]
        sounds.load_state_dict(state["sounds"])
        theirs, ours = state["mean"], dict(model.named_parameters())
        same = {name: value for name, value in theirs.items() if value.shape == ours[name].shape}
        model.load_state_dict(same, strict=False)
        mean |= {name: value.clone() for name, value in same.items()}
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        sounds.load_state_dict(state["sounds"])
        optimizer.load_state_dict(state["optimizer"])
        mean, maker.sounds, seen = state["mean"], state["names"], state["seen"]
        spent_s, step = state["spent_s"], state["step"]
        print(f"resumed after {spent_s / 60:.1f} minutes, step {step}", flush=True)

    whole_s, saved_s = args.minutes * 60, spent_s
    averages: dict[str, float] = {}
    over = spent_s >= whole_s
    while not over:
        files = sorted(args.clips.glob("train-*.json"), key=lambda path: (seen[path.name], path.name))
        some = files[:FILES_A_ROUND]
        rng = random.Random(f"{args.seed} {step}")
        clips = [clip for path in some for clip in load_clips(path)]
        clips = [clip for clip in clips if clip.kind != "sentences" or rng.random() < args.sentences]
        # Pauses cost as much as speech.
        clips = [clip if rng.random() < args.uncropped else clip.cropped(rng) for clip in clips]
        seen.update(path.name for path in some)
        for group in batches(clips, args.batch_frames, rng):
            began = time.process_time()
            done = spent_s / whole_s
            for parameters in optimizer.param_groups:
                parameters["lr"] = args.lr * schedule(done)
            # Short windows are cheaper; what the model is used on is whole ones.
            first, last = args.whole
            whole = rng.random() < first + (last - first) * done**2
            batch = maker.batch(group, source.sentences, rng, whole=whole)
            found = losses(model, sounds, said, next_, batch, args.label_smoothing)
            loss = torch.stack([WEIGHTS[name] * value for name, value in found.items()]).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            decay = min(args.average, step / (step + 10))
            for name, weight in model.named_parameters():
                mean[name].lerp_(weight.detach(), 1 - decay)
            for name, value in found.items():
                averages[name] = 0.98 * averages.get(name, value.item()) + 0.02 * value.item()
            # A processor's time: what else the machine does, and pauses, take nothing from a run.
            spent_s += (time.process_time() - began) / args.threads
            if step % 20 == 0:
                shown = ", ".join(f"{name} {value:.3f}" for name, value in averages.items())
                print(f"{spent_s / 60:.1f} min, step {step}: {shown}", flush=True)
            over = spent_s >= whole_s or step == args.steps
            if spent_s - saved_s >= args.every * 60 or over:
                saved_s = spent_s
                state = {
                    "model": model.state_dict(), "sounds": sounds.state_dict(), "mean": mean,
                    "optimizer": optimizer.state_dict(), "names": maker.sounds, "seen": seen,
                    "spent_s": spent_s, "step": step,
                }  # fmt: skip
                save_atomically(state, checkpoint)
                served = export(model, mean, tokenizer, args.out / "model")
                rate = word_errors(served, tokenizer, maker, dev).rate
                print(f"{spent_s / 60:.1f} min: word error rate {rate:.1f} %", flush=True)
            if over:
                break
    print(f"wrote {args.out / 'model'}")


if __name__ == "__main__":
    main()
