"""Tiny random checkpoints of Llama 3.2 Vision, laid out as the published ones are, images for them, and
transformers' answers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_cases import Case, OneByOne
from models import words
from PIL import Image
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import MllamaProcessor

VOCAB = 96
BOS, EOS, PAD, IMAGE = 1, 2, 3, VOCAB
BOS_TEXT, IMAGE_TEXT = "<|begin_of_text|>", "<|image|>"
CLEAR = 2e-3  # lead of each token's logit: below it rounding decides

TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "cross_attention_layers": [1, 4],
    "max_position_embeddings": 256, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD,
    # Positions reach beyond what was trained, and the waves lie on both sides of both bounds.
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    },
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_global_layers": 2, "attention_heads": 2,
    "intermediate_size": 40, "vision_output_dim": 72, "image_size": 14, "patch_size": 7,
    "intermediate_layers_indices": [0, 1],
}  # fmt: skip


def fill(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights with which answers depend on the prompt and on the images, and no gate is shut."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.2 * noise)
            elif "gate" in name.rsplit(".", 1)[-1]:
                weight.copy_(0.2 + 0.1 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.1 * noise)
            elif "embed" in name:
                weight.copy_(noise)
            else:
                weight.copy_(noise * 1.6 / weight[0].numel() ** 0.5)


def make_mllama(folder: Path, seed: int = 0, **text: Any) -> Path:
    """Writes a checkpoint with its processor into `folder` and returns it. `text` are of its text config."""
    config = MllamaConfig(vision_config=VISION, text_config=TEXT | text, image_token_index=IMAGE)
    model = MllamaForConditionalGeneration(config).eval()
    fill(model, seed)
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    model.save_pretrained(folder)
    size = {"height": VISION["image_size"], "width": VISION["image_size"]}
    MllamaProcessor(MllamaImageProcessorPil(size=size), tokenizer()).save_pretrained(folder)
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, with Llama's special tokens: BOS before every text."""
    special = ["<unk>", BOS_TEXT, "<|eot_id|>", "<|pad|>"]
    vocabulary = {
        word: at for at, word in enumerate([*special, *itertools.islice(words(), VOCAB - len(special))])
    }
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(f"{BOS_TEXT} $A", special_tokens=[(BOS_TEXT, BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=BOS_TEXT,
        eos_token=special[2],
        pad_token=special[3],
        unk_token="<unk>",
    )
    fast.add_special_tokens({"additional_special_tokens": [AddedToken(IMAGE_TEXT, special=True)]})
    fast.add_tokens(["<|python_tag|>"], special_tokens=True)
    return fast


def image(seed: int, width: int = 20, height: int = 13) -> Image.Image:
    """Colours that change from place to place, others for every seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def case(seed: int, images: int) -> Case:
    """Images of any shape in a text: first, last, apart or one after another."""
    rng = np.random.default_rng(seed)
    parts = [text(100 + seed, int(rng.integers(1, 4)))] if rng.random() < 0.6 or not images else []
    for number in range(images):
        parts.append(IMAGE_TEXT)
        if rng.random() < 0.6:
            parts.append(text(200 + 10 * seed + number, int(rng.integers(1, 4))))
    sizes = rng.integers(3, 60, (images, 2)).tolist()
    return Case(" ".join(parts), [image(10 * seed + n, *size) for n, size in enumerate(sizes)])


def text(seed: int, count: int = 5) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(np.array(list(itertools.islice(words(), VOCAB - 4)))[rng.integers(0, VOCAB - 4, count)])


class Reference(OneByOne):
    least_lead = CLEAR

    def __init__(self, folder: Path) -> None:
        self.model = MllamaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = MllamaProcessor(
            MllamaImageProcessorPil.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
        )

    def inputs(self, case: Case) -> dict[str, Any]:
        made: dict[str, Any] = self.processor(
            images=case.images or None, text=case.prompt, return_tensors="pt"
        )
        return made

    @torch.no_grad()
    def generate(self, case: Case, **options: Any) -> tuple[list[int], float]:
        inputs = self.inputs(case)
        out = self.model.generate(
            **inputs, do_sample=False, return_dict_in_generate=True, output_logits=True, **options
        )
        ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        leads = [float(-logits[0].topk(2).values.diff()) for logits in out.logits]
        return ids, min(leads[: len(ids)])
