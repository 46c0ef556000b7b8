"""Images a second against transformers with the same weights, on the same cores.

    python bench/vision.py [--models "TrOCR small" "Florence-2 base"] [--rounds 3] [--quick]
                           [--out bench/results/vision.json]

Random weights in the shapes of TrOCR-small (DeiT of 384 × 384 pixels, greedy) and Florence-2-base (DaViT of
768 × 768 pixels, a caption with three beams, as the model decodes by itself). Every answer has 20 tokens. An
image is a photograph's size, 640 × 480, and comes as a PNG file: decoding and resizing count. Loads are one
image, and eight that are all there: transformers gets them as one batch, which for it is the fastest way.

No image is answered twice, as Tandem keeps what it has seen: in every round they are others. Each system has
a process of its own, with all cores. They take turns in every round, and each goes first in turn; figures are
medians over rounds with their extremes. bfloat16 is left out where the processor has no instructions for it.
`--quick` is one round, to see that all runs.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from speech import has_bfloat16
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DeiTConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from turns import Process, in_turns

from tandem import LLM, BeamSearchParams, SamplingParams

LOADS = (1, 8)  # images at once
TOKENS = 20
SIZE = 640, 480  # width and height of an image, in pixels
QUESTION = "<CAPTION>"  # which Florence-2 is asked
BEAMS = 3
REFERENCE = "transformers float32"


@dataclass(frozen=True)
class Load:
    files: list[bytes]  # PNG


@dataclass(frozen=True)
class Outcome:
    answers: list[list[int]]  # generated ids
    seconds: float


class System(ABC):
    def __init__(self, folder: Path, *, asks: bool) -> None:
        """asks: the model takes a question about the image, and searches beams."""
        self.folder, self.asks = folder, asks

    def do(self, load: Load) -> Outcome:
        start = time.perf_counter()
        answers = self.answer(load.files)
        return Outcome(answers, time.perf_counter() - start)

    @abstractmethod
    def answer(self, files: list[bytes]) -> list[list[int]]:
        """The ids that are generated for each image."""


class Tandem(System):
    def __init__(self, folder: Path, precision: str, *, asks: bool) -> None:
        super().__init__(folder, asks=asks)
        how = {"quantization": precision} if precision == "int8" else {"dtype": precision}
        self._llm = LLM(str(folder), device="cpu", **how, max_num_seqs=32)
        length = {"max_tokens": TOKENS, "min_tokens": TOKENS}
        self._params = BeamSearchParams(**length) if asks else SamplingParams(temperature=0, **length)

    def answer(self, files: list[bytes]) -> list[list[int]]:
        question = QUESTION if self.asks else ""
        prompts: list[Any] = [{"prompt": question, "multi_modal_data": {"image": data}} for data in files]
        answers = self._llm.generate(prompts, self._params, use_tqdm=False)
        return [answer.outputs[0].token_ids for answer in answers]


class Transformers(System):
    def __init__(self, folder: Path, precision: str, *, asks: bool) -> None:
        super().__init__(folder, asks=asks)
        self._dtype = torch.float32 if precision == "float32" else torch.bfloat16
        kind: Any = Florence2ForConditionalGeneration if asks else VisionEncoderDecoderModel
        self._model = kind.from_pretrained(folder, dtype=self._dtype).eval()
        reader: Any = Florence2Processor if asks else DeiTImageProcessorPil
        self._processor = reader.from_pretrained(folder)

    @torch.inference_mode()
    def answer(self, files: list[bytes]) -> list[list[int]]:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
        texts = {"text": [QUESTION] * len(images)} if self.asks else {}
        given = self._processor(images=images, **texts, return_tensors="pt").to(self._dtype)
        # transformers counts what it starts from.
        out = self._model.generate(**given, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        return [ids[1 : 1 + TOKENS] for ids in out.tolist()]


def systems(folder: Path, *, asks: bool) -> list[Process[Load, Outcome]]:
    """Tandem's float32 first."""
    floats = ["float32", *(["bfloat16"] if has_bfloat16() else [])]
    made: dict[str, Callable[[], System]] = {
        f"tandem {precision}": partial(Tandem, folder, precision, asks=asks)
        for precision in (*floats, "int8")
    }
    for precision in floats:
        made[f"transformers {precision}"] = partial(Transformers, folder, precision, asks=asks)
    return [Process(name, make) for name, make in made.items()]


def tokenizer(words: int, last: str) -> PreTrainedTokenizerFast:
    """A tokenizer of so many words, of which the last one is `last`."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    all_words = [*special, *(f"w{n}" for n in range(len(special), words - 1)), last]
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(all_words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": last},
    )  # fmt: skip


def trocr(folder: Path, encoder: Mapping[str, Any] = {}, decoder: Mapping[str, Any] = {}) -> None:
    """Writes a checkpoint in the shape of microsoft/trocr-small-printed, but for these settings."""
    ids = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2}
    reads: dict[str, Any] = {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536,
        "image_size": 384, **encoder,
    }  # fmt: skip
    writes: dict[str, Any] = {
        "vocab_size": 64044, "d_model": 256, "decoder_layers": 6, "decoder_attention_heads": 8,
        "decoder_ffn_dim": 1024, "activation_function": "relu", "max_position_embeddings": 512,
        "cross_attention_hidden_size": reads["hidden_size"], **ids, **decoder,
    }  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        DeiTConfig(**reads), TrOCRConfig(**writes), **ids
    )
    VisionEncoderDecoderModel(config).save_pretrained(folder)
    tokenizer(writes["vocab_size"], "last").save_pretrained(folder)
    size = {"height": 384, "width": 384}
    DeiTImageProcessorPil(size=size, crop_size=size, do_center_crop=False).save_pretrained(folder)


def florence(folder: Path, vision: Mapping[str, Any] = {}, text: Mapping[str, Any] = {}) -> None:
    """Writes a checkpoint in the shape of florence-community/Florence-2-base, but for these settings."""
    config = Florence2Config(
        vision_config={
            "projection_dim": 768, "embed_dim": [128, 256, 512, 1024], "depths": [1, 1, 9, 1], **vision,
        },
        text_config={
            "model_type": "bart", "vocab_size": 51328, "d_model": 768, "encoder_layers": 6,
            "decoder_layers": 6, "encoder_attention_heads": 12, "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "max_position_embeddings": 1024, **text,
        },
        image_token_id=51289,
    )  # fmt: skip
    model = Florence2ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        num_beams=BEAMS, no_repeat_ngram_size=3, early_stopping=True, decoder_start_token_id=2,
        forced_bos_token_id=0, forced_eos_token_id=2, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(
        size={"height": 768, "width": 768}, do_center_crop=False, image_seq_length=577,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    Florence2Processor(images, tokenizer(51290, "<image>")).save_pretrained(folder)


MODELS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "TrOCR small": (trocr, False),
    "Florence-2 base": (florence, True),
}


def pictures(count: int, seed: int) -> Load:
    """Images of shapes and noise."""
    draw, files = np.random.default_rng(seed), []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), np.uint8)).resize(SIZE)
        noise = draw.integers(-20, 20, (*SIZE[::-1], 3))
        file = io.BytesIO()
        Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return Load(files)


def measure(folder: Path, rounds: int, *, asks: bool) -> dict[str, Any]:
    made = systems(folder, asks=asks)
    for system in made:  # the first answer, from memory that is not there yet
        system.do(pictures(1, 0))
    outcomes: dict[int, dict[str, list[Outcome]]] = {count: {} for count in LOADS}
    for number in range(rounds):
        for count in LOADS:
            load = pictures(count, 1000 * count + number + 1)
            for name, outcome in in_turns(made, load, number):
                outcomes[count].setdefault(name, []).append(outcome)
    for system in made:
        system.close()
    return {str(count): figures_of(count, by_system) for count, by_system in outcomes.items()}


def figures_of(count: int, outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    figures = {}
    expected = [answer for one in outcomes[REFERENCE] for answer in one.answers]
    for system, each in outcomes.items():
        answers = [answer for one in each for answer in one.answers]
        figures[system] = {
            "seconds": machine.spread([one.seconds for one in each]),
            "images_per_s": machine.spread([count / one.seconds for one in each]),
            "as_reference": sum(map(list.__eq__, answers, expected)) / len(expected),  # share of the answers
            # Ratios within a round: images/s of this over that.
            "over": {
                theirs: machine.spread(
                    [other.seconds / one.seconds for one, other in zip(each, others, strict=True)]
                )
                for theirs, others in outcomes.items()
                if theirs.startswith("transformers") and theirs != system
            },
        }
    return figures


def main() -> None:
    parser = machine.parser(__doc__, "vision", rounds=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    rounds, console = 1 if args.quick else args.rounds, Console()
    result: dict[str, Any] = {"machine": machine.describe(), "rounds": rounds, "models": {}}
    for name in args.models:
        make, asks = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            make(Path(folder))
            result["models"][name] = figures = measure(Path(folder), rounds, asks=asks)
        console.print(_table(name, figures))
        machine.write(args.out, result)
    console.print(f"wrote {args.out}")


def _table(title: str, figures: dict[str, Any]) -> Table:
    table = Table("images", "system", "s", "images/s", "× transformers", "as it answers", title=title)
    for count, by_system in figures.items():
        for system, values in by_system.items():
            over = values["over"].get(REFERENCE)
            table.add_row(
                count, system, f"{values['seconds']['median']:.2f}",
                f"{values['images_per_s']['median']:.2f}",
                over and f"{over['median']:.2f} ({over['min']:.2f} to {over['max']:.2f})",
                f"{100 * values['as_reference']:.0f} %",
            )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main())
