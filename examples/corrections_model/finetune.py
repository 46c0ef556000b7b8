"""Fine-tunes the bundled model to correct English sentences, and scores it through Tandem.

    python examples/corrections_model/finetune.py --data FILE [FILE ...] --out FOLDER

FILE is tab-separated with an English sentence first, as `tatoeba-en-fr.tsv`. The run can be stopped at any
time and started again with the same arguments: it goes on from its last checkpoint. FOLDER/model gets the
model and `held_out.tsv`: inputs made of sentences that no training text has, each with its corrected text
and the model's answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import torch
from noise import Correction, corrections, read_english
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import AutoTokenizer, T5ForConditionalGeneration
from transformers.optimization import Adafactor

from tandem import LLM, SamplingParams
from tandem.quickstart import PATH

sys.path.append(str(Path(__file__).parents[1] / "quickstart_model"))
from data import part_of
from train import Example, batches, save_atomically, schedule, tensors

ROUND = 2000  # texts made at a time, then batched by length
HELD_OUT = 300  # texts
EVERY = 250  # steps between checkpoints
MAX_TOKENS = 200


def encode(tokenizer: Tokenizer, some: list[Correction]) -> list[Example]:
    sources = tokenizer.encode_batch([one.source for one in some])
    targets = tokenizer.encode_batch([one.clean for one in some])
    return [(source.ids, target.ids) for source, target in zip(sources, targets, strict=True)]


def stream(sentences: list[str], tokenizer: Tokenizer, tokens: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches of about `tokens` source + target tokens, with new slips each round."""
    for number in itertools.count():
        texts = corrections(sentences, ROUND, random.Random(f"{seed} {number}"))
        yield from batches(encode(tokenizer, texts), tokens, number)


def answer(model: Path, held_out: list[Correction]) -> list[str]:
    """Greedy answers, through Tandem."""
    with LLM(str(model), dtype="float32") as llm:
        params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
        outputs = llm.generate([one.source for one in held_out], params)
    return [output.outputs[0].text for output in outputs]


def scores(tokenizer: Tokenizer, held_out: list[Correction], answers: list[str]) -> dict[str, float]:
    """Shares: texts and sentences that are exactly right, and the answers' tokens taken from the input."""
    kept = total = 0
    sentences: list[bool] = []
    for one, text in zip(held_out, answers, strict=True):
        source, target = (tokenizer.encode(of).ids for of in (one.noised, text))
        kept += copied(source, target)
        total += len(target)
        sentences += matches(one.clean.split(". "), text.split(". "))
    right = sum(text == one.clean for one, text in zip(held_out, answers, strict=True))
    return {
        "texts right": round(right / len(answers), 3),
        "sentences right": round(sum(sentences) / len(sentences), 3),
        "tokens copied": round(kept / total, 3),
    }


def matches(clean: Sequence[str], answer: Sequence[str]) -> list[bool]:
    """For each clean sentence, whether the answer has it, in order."""
    right = [False] * len(clean)
    for block in SequenceMatcher(None, clean, answer, autojunk=False).get_matching_blocks():
        right[block.a : block.a + block.size] = [True] * block.size
    return right


def copied(source: Sequence[int], target: Sequence[int]) -> int:
    """How many tokens of the target are the source's, in its order."""
    blocks = SequenceMatcher(None, source, target, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, nargs="+", help="tab-separated, English first")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint and the finished model")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-tokens", type=int, default=2000, help="source + target tokens a step")
    parser.add_argument("--lr", type=float, default=8e-3, help="peak rate (Adafactor, relative to weights)")
    parser.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    english = read_english(args.data)
    train = [sentence for sentence in english if part_of(sentence) == "train"]
    test = [sentence for sentence in english if part_of(sentence) == "test"]
    tokenizer = AutoTokenizer.from_pretrained(PATH, local_files_only=True)
    torch.manual_seed(args.seed)
    model = T5ForConditionalGeneration.from_pretrained(PATH, dtype=torch.float32).train()
    optimizer = Adafactor(model.parameters(), lr=args.lr, scale_parameter=True, relative_step=False)
    done, checkpoint = 0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
        print(f"resumed at step {done} of {args.steps}")

    fed = stream(train, tokenizer.backend_tokenizer, args.batch_tokens, args.seed)
    bar = tqdm(range(done + 1, args.steps + 1), unit="step", mininterval=5)
    for step, batch in zip(bar, itertools.islice(fed, done, None), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * schedule(step, args.steps, args.warmup)
        loss = model(**tensors(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step % EVERY == 0 or step == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            save_atomically(state, checkpoint)

    folder = args.out / "model"
    model.config.task_specific_params = None
    model.generation_config.max_new_tokens = MAX_TOKENS
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    held_out = corrections(test, HELD_OUT, random.Random(args.seed))
    answers = answer(folder, held_out)
    lines = ("\t".join((one.source, one.clean, text)) for one, text in zip(held_out, answers, strict=True))
    (folder / "held_out.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(json.dumps(scores(tokenizer.backend_tokenizer, held_out, answers), indent=2))


if __name__ == "__main__":
    main()
