"""Tiny random Pix2Structs, laid out as the published ones are, and transformers' answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import models
import torch
from models import EOS, PAD, VOCAB, Variant, word_tokenizer
from PIL import Image, ImageFont
from transformers import Pix2StructConfig, Pix2StructForConditionalGeneration
from transformers.models.pix2struct import image_processing_pil_pix2struct as theirs

from tandem.workers.models.model_folder import FONT

PATCHES = 24  # at most
TOKENS = 10
CLEAR = 1e-3  # lead of each token's logit: below it rounding decides
START = PAD
# Pictures that come to another number of patches each, in rows and columns.
SIZES = ((45, 31), (30, 77), (36, 28), (5, 3), (1, 1), (300, 7), (64, 64))


def pix2struct_config(**text: Any) -> Pix2StructConfig:
    return Pix2StructConfig(
        vision_config={
            "hidden_size": 48, "patch_embed_hidden_size": 3 * 4 * 6, "d_ff": 56, "d_kv": 8,
            "num_hidden_layers": 3, "num_attention_heads": 4, "seq_len": PATCHES + 1,
        },
        text_config={
            "vocab_size": VOCAB, "hidden_size": 48, "d_kv": 24, "d_ff": 40, "num_layers": 2, "num_heads": 2,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
            "decoder_start_token_id": START, "pad_token_id": PAD, "eos_token_id": EOS, **text,
        },
    )  # fmt: skip


def processor(**options: Any) -> Any:
    said: dict[str, Any] = {"max_patches": PATCHES, "patch_size": {"height": 4, "width": 6}, **options}
    return theirs.Pix2StructImageProcessorPil(**said)


def make_pix2struct(folder: Path, seed: int = 0, *, is_vqa: bool = False, **text: Any) -> Path:
    """Writes a checkpoint with tokenizer, image processor and, for questions, a font into `folder` and
    returns it. `text` is of its decoder's config."""
    folder.mkdir(exist_ok=True)
    model = Pix2StructForConditionalGeneration(pix2struct_config(**text)).eval()
    models.fill(model, Variant("Pix2Struct", False, {}, 2.5), seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "attention.key" in name or "attention.query" in name:
                weight *= 2  # scores are not scaled: answers follow their images
    model.save_pretrained(folder)
    word_tokenizer(VOCAB).save_pretrained(folder)
    processor(is_vqa=is_vqa).save_pretrained(folder)
    if is_vqa:
        (folder / FONT).write_bytes(font())
    return folder


def font() -> bytes:
    """A TrueType file: the one within Pillow."""
    found: bytes = ImageFont.load_default(36).font_bytes  # type: ignore[union-attr]
    return found


@contextmanager
def drawing(path: Path) -> Iterator[None]:
    """transformers draws with this font instead of one that it downloads."""
    with mock.patch.object(theirs, "hf_api") as api:
        api.return_value.hf_hub_download.return_value = str(path)
        yield


class Reference:
    """transformers with one checkpoint, one request at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = Pix2StructForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.max_length = None  # else a warning of `max_new_tokens` a call
        self._font = folder / FONT
        self._processor = processor(is_vqa=self._font.is_file())

    def inputs(self, image: Image.Image, question: str | None = None) -> dict[str, torch.Tensor]:
        """Patches, those of padding included, and their mask."""
        with drawing(self._font):
            return dict(self._processor(images=image, header_text=question, return_tensors="pt"))

    @torch.no_grad()
    def states(self, image: Image.Image, question: str | None = None) -> torch.Tensor:
        """The encoder's output without padding, [patches, width]."""
        given = self.inputs(image, question)
        states: torch.Tensor = self.model.encoder(**given).last_hidden_state[0]
        return states[given["attention_mask"][0].bool()]

    @torch.no_grad()
    def generate(
        self, image: Image.Image, question: str | None = None, prefix: list[int] | None = None, **options: Any
    ) -> list[int]:
        """The generated ids, EOS included; `prefix`: what the decoder starts from."""
        start = [START] if prefix is None else prefix
        given = torch.tensor([start])
        out = self.model.generate(**self.inputs(image, question), decoder_input_ids=given, **options)[0]
        ids: list[int] = out.tolist()[len(start) :]
        return ids[: ids.index(EOS) + 1] if EOS in ids else ids

    @torch.no_grad()
    def lead(self, image: Image.Image, question: str | None, ids: list[int]) -> float:
        """The smallest lead of an answer's tokens over the next likeliest, in logits."""
        given = torch.tensor([[START, *ids]])
        logits = self.model(**self.inputs(image, question), decoder_input_ids=given).logits[0]
        return float(-logits[:-1].topk(2).values.diff().max())
