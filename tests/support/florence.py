"""Tiny random Florence-2 checkpoints, laid out as the published ones are, images for them, and transformers'
answers."""

from __future__ import annotations

import io
import string
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from models import Variant
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tandem import SamplingParams

BOS, PAD, EOS, UNK = range(4)
LOCATIONS = 48  # of the published models' 1000
CLEAR = 1e-3  # lead of each token's logit: below it rounding decides
TOKENS = 24
SIZE = 56, 72  # width and height of what the encoder reads
POSITIONS = 64  # of an image
GREEDY = SamplingParams(
    num_beams=1, max_tokens=TOKENS, no_repeat_ngram_size=0, forced_bos_token_id=9, forced_eos_token_id=8
)
# In transformers' words.
PLAIN: dict[str, Any] = {
    "num_beams": 1, "max_length": TOKENS + 1, "no_repeat_ngram_size": 0, "forced_bos_token_id": 9,
    "forced_eos_token_id": 8, "early_stopping": False,
}  # fmt: skip
# Twenty, to be asked about one image.
QUESTIONS = [
    *("<OD>", "<CAPTION>", "<REGION_PROPOSAL>", "<OCR>", "<DETAILED_CAPTION>", "<DENSE_REGION_CAPTION>"),
    *(f"<OPEN_VOCABULARY_DETECTION>{letter}" for letter in "abcdefg"),
    *(f"What is it, {letter}?" for letter in "abcdefg"),
]
# As the published models have it, but for the phrases.
POST_PROCESSOR: dict[str, Any] = {
    "ocr": {"pattern": r"(.+?)" + r"<loc_(\d+)>" * 8, "area_threshold": 0.0},
    "phrase_grounding": {"banned_grounding_tokens": ["it", "the image"]},
    **{
        kind: {}
        for kind in (
            "pure_text", "description_with_bboxes", "description_with_polygons", "polygons", "bboxes",
            "description_with_bboxes_or_polygons",
        )
    },
}  # fmt: skip
GENERATION: dict[str, Any] = {
    "num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True, "decoder_start_token_id": EOS,
    "forced_bos_token_id": BOS, "forced_eos_token_id": EOS, "bos_token_id": BOS, "eos_token_id": EOS,
    "pad_token_id": PAD, "max_length": TOKENS,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """Letters, places and BART's special tokens; the last id is an image's."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    plain = [letter for letter in string.ascii_letters + ".,:?Ġ" if letter in letters]
    vocabulary = {token: at for at, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *plain])}
    made = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    ends = [("<s>", BOS), ("</s>", EOS)]
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    special = [f"<loc_{at}>" for at in range(LOCATIONS)] + ["<poly>", "</poly>", "<sep>", "<od>", "<image>"]
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def florence_config(
    vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None
) -> Florence2Config:
    """Unequal widths, depths and heads; the special ids are the published ones."""
    words = len(tokenizer())
    return Florence2Config(
        vision_config={
            "embed_dim": [8, 12, 16], "depths": [1, 2, 1], "patch_size": [7, 3, 2], "patch_stride": [4, 1, 2],
            "patch_padding": [3, 1, 0], "patch_prenorm": [False, True, True], "num_heads": [2, 3, 4],
            "num_groups": [4, 3, 2], "window_size": 5, "mlp_ratio": 2.5, "projection_dim": 32,
            "max_position_embeddings": 14, "max_temporal_embeddings": 7, **(vision or {}),
        },
        text_config={
            "model_type": "bart", "vocab_size": words + 7, "d_model": 32, "encoder_layers": 3,
            "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48, "decoder_ffn_dim": 64, "max_position_embeddings": 200, **(text or {}),
        },
        image_token_id=words - 1,
    )  # fmt: skip


def make_florence(folder: Path, seed: int = 0, **text: Any) -> Path:
    """Writes a checkpoint with its processor into `folder` and returns it. `text` is of its language model's
    config."""
    model = Florence2ForConditionalGeneration(florence_config(text=text)).eval()
    models.fill(model, Variant("Florence2", True, {}, 1.5), seed, eos=EOS)
    model.generation_config = GenerationConfig(**GENERATION)
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(
        size={"height": SIZE[1], "width": SIZE[0]}, do_center_crop=False, image_seq_length=POSITIONS,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    Florence2Processor(images, tokenizer(), post_processor_config=POST_PROCESSOR).save_pretrained(folder)
    return folder


def image(seed: int) -> Image.Image:
    """Shapes and noise, of another odd size for every seed."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(31, 140, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 4, 3), np.uint8)).resize((width, height), 0)
    noise = rng.integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def file(seed: int) -> bytes:
    """The image as a PNG."""
    made = io.BytesIO()
    image(seed).save(made, "PNG")
    return made.getvalue()


def prompt(text: str, seed: int | None) -> Any:
    """A prompt with the image of a seed, or without one."""
    return text if seed is None else {"prompt": text, "multi_modal_data": {"image": image(seed)}}


class Reference:
    """transformers with one checkpoint, one request at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = Florence2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = Florence2Processor.from_pretrained(folder)

    def inputs(self, text: str, seed: int | None) -> dict[str, torch.Tensor]:
        images = None if seed is None else image(seed)
        return dict(self.processor(text=text, images=images, return_tensors="pt"))

    @torch.no_grad()
    def generate(self, text: str, seed: int | None, **options: Any) -> list[int]:
        """The generated ids, EOS included."""
        out = self.model.generate(**self.inputs(text, seed), **options)
        ids: list[int] = out[0, 1:].tolist()
        return ids[: ids.index(EOS) + 1] if EOS in ids else ids

    @torch.no_grad()
    def lead(self, text: str, seed: int | None, ids: list[int]) -> float:
        """The smallest lead of an answer's tokens over the next likeliest, in logits."""
        given = torch.tensor([[EOS, *ids]])
        logits = self.model(**self.inputs(text, seed), decoder_input_ids=given).logits[0, :-1]
        return float(-logits.topk(2).values.diff().max())

    def parsed(self, task: str, seed: int, ids: list[int]) -> Any:
        """What users of transformers make of an answer."""
        (text,) = self.processor.batch_decode([[EOS, *ids]], skip_special_tokens=False)
        return self.processor.post_process_generation(text, task=task, image_size=image(seed).size)
