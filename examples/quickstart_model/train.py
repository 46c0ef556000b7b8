"""Trains the quickstart model: a small T5 that translates English to French and to German.

    python examples/quickstart_model/train.py --data FOLDER --out FOLDER
    python examples/quickstart_model/train.py --data FOLDER --out MORE --init FOLDER/model --lr 4e-3

FOLDER of `--data` holds `tatoeba-en-fr.tsv` and `tatoeba-en-de.tsv`. The run can be stopped at any
time and started again with the same arguments: it goes on from its last checkpoint. The second line trains
a finished model further, with a warm restart of the rate. `evaluate.py` scores the result on the held-out
part.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from data import EOS, PAD, PREFIXES, Pair, read_pairs, train_tokenizer
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers.optimization import Adafactor

Example = tuple[list[int], list[int]]  # source ids, target ids, each ending in </s>


def make_config(dropout: float) -> T5Config:
    return T5Config(
        vocab_size=4000, d_model=256, d_kv=64, d_ff=768, num_heads=4,
        num_layers=4, num_decoder_layers=2, dropout_rate=dropout, feed_forward_proj="relu",
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS,
    )  # fmt: skip


def encode(tokenizer: Tokenizer, pairs: list[Pair]) -> list[Example]:
    sources = tokenizer.encode_batch([pair.source for pair in pairs])
    targets = tokenizer.encode_batch([pair.translation for pair in pairs])
    return [(s.ids, t.ids) for s, t in zip(sources, targets, strict=True)]


def batches(examples: list[Example], tokens: int, seed: int) -> list[list[Example]]:
    """Batches of about `tokens` source + target tokens of like lengths, in random order."""
    rng = random.Random(seed)
    # Equal lengths are shuffled among themselves, so that batches differ from pass to pass.
    order = sorted(examples, key=lambda e: (len(e[0]) + len(e[1]), len(e[1]), rng.random()))
    out: list[list[Example]] = [[]]
    used = 0
    for example in order:
        size = len(example[0]) + len(example[1])
        if used + size > tokens and out[-1]:
            out.append([])
            used = 0
        out[-1].append(example)
        used += size
    rng.shuffle(out)
    return out


def tensors(batch: list[Example]) -> dict[str, torch.Tensor]:
    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        longest = max(map(len, rows))
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    source = pad([s for s, _ in batch], PAD)
    return {
        "input_ids": source,
        "attention_mask": (source != PAD).long(),
        "labels": pad([t for _, t in batch], -100),
    }


def loss_of(model: T5ForConditionalGeneration, batch: list[Example], smoothing: float) -> torch.Tensor:
    inputs = {k: v.to(model.device) for k, v in tensors(batch).items()}
    with torch.autocast(model.device.type, torch.bfloat16):
        logits = model(**inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), inputs["labels"].flatten(), label_smoothing=smoothing
    )


def schedule(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then cosine to zero."""
    return min(step / warmup, 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0))))


def save_atomically(state: dict[str, object], path: Path) -> None:
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def export(model: T5ForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the checkpoint as served: float16 safetensors, tokenizer.json, configs."""
    model.config.dropout_rate = 0.1  # serving ignores it; who fine-tunes starts from T5's own
    model.config.task_specific_params = {
        f"translation_en_to_{language}": {"prefix": prefix} for language, prefix in PREFIXES.items()
    }
    model.generation_config.max_new_tokens = 64
    model.half().save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False, model_max_length=512,
    ).save_pretrained(folder)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the two .tsv files")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and the finished model")
    parser.add_argument("--init", type=Path, help="a finished model to go on from (default: a random one)")
    parser.add_argument("--passes", type=int, default=15, help="passes over the training part")
    parser.add_argument("--batch-tokens", type=int, default=2000, help="source + target tokens a step")
    parser.add_argument("--lr", type=float, default=1e-2, help="peak rate (Adafactor, relative to weights)")
    parser.add_argument("--warmup", type=int, default=300, help="steps of linear warm-up")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument(
        "--average", type=float, default=0.9995, help="decay of the running mean of the weights"
    )
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    parts = read_pairs(args.data)
    tokenizer_file = args.out / "tokenizer.json"
    if args.init:
        shutil.copyfile(args.init / "tokenizer.json", tokenizer_file)
    elif not tokenizer_file.exists():
        train_tokenizer(parts["train"]).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    train, dev = encode(tokenizer, parts["train"]), encode(tokenizer, parts["dev"])
    print({part: len(pairs) for part, pairs in parts.items()})

    torch.manual_seed(args.seed)
    model = T5ForConditionalGeneration(make_config(args.dropout)).to(args.device)
    if args.init:
        weights = T5ForConditionalGeneration.from_pretrained(args.init, dtype=torch.float32).state_dict()
        model.load_state_dict(weights)
    optimizer = Adafactor(model.parameters(), lr=args.lr, scale_parameter=True, relative_step=False)
    plan: list[tuple[int, list[Example]]] = [
        (number, batch)
        for number in range(args.passes)
        for batch in batches(train, args.batch_tokens, args.seed + number)
    ]
    # What is exported: a running mean over the last passes' weights is better than any of them.
    mean = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    done = 0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=args.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        mean = state["mean"]
        done = state["step"]
        torch.set_rng_state(state["rng"])
        print(f"resumed at step {done} of {len(plan)}")

    def steps() -> Iterator[tuple[int, list[Example]]]:
        yield from plan[done:]

    model.train()
    bar = tqdm(steps(), total=len(plan), initial=done, unit="step", smoothing=0.02, mininterval=5)
    average = None
    for step, (number, batch) in enumerate(bar, done + 1):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * schedule(step, len(plan), args.warmup)
        loss = loss_of(model, batch, args.label_smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # In the first steps the mean follows closely: the random start must not linger in it.
        decay = min(args.average, step / (step + 10))
        for name, weight in model.named_parameters():
            mean[name].lerp_(weight.detach(), 1 - decay)
        average = loss.item() if average is None else 0.99 * average + 0.01 * loss.item()
        bar.set_postfix(loss=f"{average:.3f}", number=number + 1, refresh=False)
        if step % 500 == 0 or step == len(plan):
            state = {
                "model": model.state_dict(),
                "mean": mean,
                "optimizer": optimizer.state_dict(),
                "step": step,
                "rng": torch.get_rng_state(),
            }
            save_atomically(state, checkpoint)
        if step == len(plan) or plan[step][0] != number:
            model.eval()
            with torch.no_grad():
                losses = [loss_of(model, b, 0.0).item() for b in batches(dev, args.batch_tokens, 0)]
            model.train()
            bar.write(f"pass {number + 1}: dev loss {sum(losses) / len(losses):.3f}")
    model.load_state_dict(mean, strict=False)  # tied weights are there once
    export(model, tokenizer, args.out / "model")
    print(f"wrote {args.out / 'model'}")


if __name__ == "__main__":
    main()
