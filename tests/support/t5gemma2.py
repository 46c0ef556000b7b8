"""Tiny random checkpoints of T5Gemma 2, laid out as the published ones are, images for them, and
transformers' answers."""

from __future__ import annotations

import itertools
import string
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from image_cases import Case, OneByOne
from models import Variant
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, processors
from tokenizers.models import BPE
from transformers import (
    Gemma3Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
    T5Gemma2Config,
    T5Gemma2ForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

PAD, EOS, BOS, UNK = range(4)
IMAGE_TEXT = "<start_of_image>"
POSITIONS = 9  # of an image
CLEAR = 1e-3  # lead of each token's logit: below it rounding decides
TOKENS = 10
SIDE = 30  # pixels; 7 patches of 4, of which squares of 2 leave one at either edge

VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": SIDE, "patch_size": 4, "vision_use_head": False,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Letters, spaces and lines, of which several become one token, with Gemma's special tokens."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    lines = ["\n" * count for count in (1, 2, 4)]
    plain = [*string.ascii_letters, *".,:?! ", *lines]
    vocabulary = {token: at for at, token in enumerate([*special, *plain])}
    made = Tokenizer(BPE(vocab=vocabulary, merges=[(one, one) for one in lines[:2]], unk_token="<unk>"))
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", BOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        extra_special_tokens={
            "boi_token": IMAGE_TEXT, "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
        },
    )  # fmt: skip
    fast.add_tokens([AddedToken("<unused0>", special=True)])
    return fast


def t5gemma2_config(vision: dict[str, Any] | None = None, **encoder: Any) -> T5Gemma2Config:
    """Unequal depths and heads."""
    words = tokenizer()
    image, end = (words.vocab[token] for token in ("<image_soft_token>", "<end_of_image>"))
    text = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 9,
        "sliding_window": 6, "max_position_embeddings": 192, "bos_token_id": BOS, "eos_token_id": EOS,
        "pad_token_id": PAD, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }  # fmt: skip
    return T5Gemma2Config(
        encoder={
            "text_config": text,
            "vision_config": VISION | (vision or {}),
            "mm_tokens_per_image": POSITIONS,
            "image_token_index": image,
            "eoi_token_index": end,
            **encoder,
        },
        decoder={
            **text,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        image_token_index=image,
    )


@torch.no_grad()
def fill_images(model: torch.nn.Module, seed: int) -> None:
    """Random weights of the vision tower and projector, with which images differ as texts do."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "mm_soft_emb_norm" in name:
            weight.copy_(0.3 * noise)  # less one, as it is published
        elif "multi_modal_projector" in name:
            weight.copy_(1.5 * noise / weight.shape[0] ** 0.5)
        elif "vision_tower" in name and "norm" in name and name.endswith("weight"):
            weight.copy_(1 + 0.3 * noise)
        elif "vision_tower" in name and name.endswith("bias"):
            weight.copy_(0.1 * noise)
        elif "vision_tower" in name:
            weight.copy_(1.3 * noise / weight[0].numel() ** 0.5)


def make_t5gemma2(folder: Path, seed: int = 0) -> Path:
    """Writes a checkpoint with its processor into `folder` and returns it."""
    model = T5Gemma2ForConditionalGeneration(t5gemma2_config()).eval()
    models.fill(model, Variant("T5Gemma2", True, {}, 1.5), seed, eos=EOS)
    fill_images(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=BOS
    )
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def processor() -> Gemma3Processor:
    images = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Gemma3Processor(images, tokenizer(), image_seq_length=POSITIONS)


def image(seed: int, width: int = 41, height: int = 26) -> Image.Image:
    """Shapes and noise, others for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((width, height), 0)
    noise = rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def text(seed: int, count: int = 8) -> str:
    rng = np.random.default_rng(seed)
    letters = [*string.ascii_lowercase, " ", "\n"]
    return "".join(letters[at] for at in rng.integers(0, len(letters), count))


def case(seed: int, images: int) -> Case:
    """Images of any shape in a text: first, last, apart or one after another, on lines of their own or
    not."""
    rng = np.random.default_rng(seed)
    parts = [text(100 + seed, int(rng.integers(1, 12)))] if rng.random() < 0.7 or not images else []
    for number in range(images):
        parts.append(IMAGE_TEXT)
        if rng.random() < 0.6:
            parts.append(
                rng.choice(["\n", "\n\n", ""]) + text(200 + 10 * seed + number, int(rng.integers(1, 9)))
            )
    sizes = rng.integers(3, 90, (images, 2)).tolist()
    return Case("".join(parts), [image(10 * seed + n, *size) for n, size in enumerate(sizes)])


def cases() -> list[Case]:
    return [case(seed, images) for seed, images in itertools.product(range(5), (1, 0, 3, 2))]


class Reference(OneByOne):
    least_lead = CLEAR

    def __init__(self, folder: Path) -> None:
        self.model = T5Gemma2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = processor()

    def inputs(self, case: Case) -> dict[str, Any]:
        made: dict[str, Any] = self.processor(
            images=case.images or None, text=case.prompt or None, return_tensors="pt"
        )
        return made

    @torch.no_grad()
    def generate(self, case: Case, **options: Any) -> tuple[list[int], float]:
        # use_cache: transformers sizes the cache by the encoder, see `models.reference_greedy`.
        out = self.model.generate(
            **self.inputs(case), do_sample=False, use_cache=False, return_dict_in_generate=True,
            output_logits=True, **{"max_new_tokens": TOKENS, **options},
        )  # fmt: skip
        ids = out.sequences[0, 1:].tolist()
        ids = ids[: ids.index(EOS) + 1] if EOS in ids else ids
        leads = [float(-logits[0].topk(2).values.diff()) for logits in out.logits]
        return ids, min(leads[: len(ids)])
