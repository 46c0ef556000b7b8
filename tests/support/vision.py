"""Tiny random VisionEncoderDecoderModels of every pair, laid out as the published ones are, pictures for
them, and transformers' answers."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from models import EOS, PAD, VOCAB, Variant, word_tokenizer
from PIL import Image
from transformers import (
    BartConfig,
    BeitConfig,
    BertConfig,
    DeiTConfig,
    DonutSwinConfig,
    GPT2Config,
    MBartConfig,
    PreTrainedConfig,
    SwinConfig,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.donut.image_processing_pil_donut import DonutImageProcessorPil
from transformers.models.nougat.image_processing_pil_nougat import NougatImageProcessorPil
from transformers.models.trocr.modeling_trocr import TrOCRSinusoidalPositionalEmbedding
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

TOKENS = 10
CLEAR = 1e-3  # lead of each token's logit: below it rounding decides
START = 3


@dataclass(frozen=True)
class Pair:
    encoder: PreTrainedConfig
    decoder: PreTrainedConfig
    processor: Any
    eos_gain: float = 2.0


_VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "image_size": [36, 28], "patch_size": [8, 4],
}  # fmt: skip
_SIZE = {"height": 36, "width": 28}  # four pixels at the bottom are in no patch
_IDS: dict[str, Any] = {
    "vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": START,
    "decoder_start_token_id": START,
}  # fmt: skip
_BART: dict[str, Any] = {
    **_IDS, "d_model": 48, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 40,
    "max_position_embeddings": 40,
}  # fmt: skip
_GPT2: dict[str, Any] = {**_IDS, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
_BERT: dict[str, Any] = {
    **_IDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40,
    "max_position_embeddings": 64,
}  # fmt: skip


def _vit_processor(**options: Any) -> Any:
    return ViTImageProcessorPil(**{"size": _SIZE, **options})


PAIRS = {
    # TrOCR base: no biases of queries, keys and values; the decoder's cross-attention reads another width.
    "trocr": Pair(
        ViTConfig(**_VIT, qkv_bias=False),
        TrOCRConfig(**_BART, cross_attention_hidden_size=32, scale_embedding=True),
        _vit_processor(),
    ),
    # TrOCR large: sinusoidal positions, no norm of the embeddings.
    "trocr-sines": Pair(
        ViTConfig(**_VIT, hidden_act="gelu_pytorch_tanh"),
        TrOCRConfig(
            **_BART, cross_attention_hidden_size=32, use_learned_position_embeddings=False,
            layernorm_embedding=False, activation_function="relu",
        ),
        _vit_processor(resample=3),
    ),
    # TrOCR small, projected.
    "deit-trocr": Pair(
        DeiTConfig(**_VIT | {"image_size": 30, "patch_size": 10}, layer_norm_eps=1e-6),
        TrOCRConfig(**_BART, tie_word_embeddings=False),
        DeiTImageProcessorPil(size={"height": 34, "width": 34}, crop_size={"height": 30, "width": 30}),
    ),
    "vit-bart": Pair(ViTConfig(**_VIT), BartConfig(**_BART), _vit_processor()),
    "vit-mbart": Pair(ViTConfig(**_VIT), MBartConfig(**_BART, scale_embedding=True), _vit_processor(), 1.0),
    "vit-gpt2": Pair(ViTConfig(**_VIT), GPT2Config(**_GPT2), _vit_processor(), 1.0),
    "beit-trocr": Pair(
        BeitConfig(
            **_VIT | {"image_size": 24, "patch_size": 8}, use_relative_position_bias=True,
            use_absolute_position_embeddings=True, layer_scale_init_value=0.1, use_mean_pooling=False,
        ),
        TrOCRConfig(**_BART, cross_attention_hidden_size=32),
        _vit_processor(size={"height": 24, "width": 24}),
    ),
    "beit-bert": Pair(
        BeitConfig(
            **_VIT | {"image_size": [40, 24], "patch_size": 8}, use_shared_relative_position_bias=True,
            layer_scale_init_value=0.0,
        ),
        BertConfig(**_BERT),
        _vit_processor(size={"height": 40, "width": 24}),
    ),
    "swin-gpt2": Pair(
        SwinConfig(
            image_size=[50, 39], patch_size=4, embed_dim=8, depths=[2, 3], num_heads=[2, 4], window_size=3,
            mlp_ratio=2.0,
        ),
        GPT2Config(**_GPT2),
        _vit_processor(size={"height": 50, "width": 39}),
    ),
    "donut": Pair(
        DonutSwinConfig(
            image_size=[48, 36], patch_size=4, embed_dim=12, depths=[2, 2, 1], num_heads=[2, 3, 6],
            window_size=3,
        ),
        MBartConfig(**_BART, scale_embedding=True),
        DonutImageProcessorPil(size={"height": 48, "width": 36}),
    ),
    # Windows as in the published ones, which in one direction do not divide the grid.
    "nougat": Pair(
        DonutSwinConfig(
            image_size=[56, 42], patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=7,
        ),
        MBartConfig(**_BART | {"decoder_layers": 3, "add_final_layer_norm": True}, scale_embedding=True),
        NougatImageProcessorPil(size={"height": 56, "width": 42}),
        1.0,
    ),
    "vit-bert": Pair(ViTConfig(**_VIT), BertConfig(**_BERT), _vit_processor()),
}  # fmt: skip


def make_vision(folder: Path, pair: str, seed: int = 0) -> Path:
    """Writes a checkpoint with tokenizer and image processor into `folder` and returns it."""
    kind = PAIRS[pair]
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        kind.encoder, kind.decoder, **{name: id for name, id in _IDS.items() if name != "vocab_size"}
    )
    model = VisionEncoderDecoderModel(config).eval()
    tied = kind.decoder.tie_word_embeddings
    models.fill(model, Variant("VisionEncoderDecoder", tied, {}, kind.eos_gain), seed)
    model.save_pretrained(folder)
    word_tokenizer(VOCAB).save_pretrained(folder)
    kind.processor.save_pretrained(folder)
    if reader := {"donut": "DonutProcessor", "nougat": "NougatProcessor"}.get(pair):  # as published ones say
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": reader}))
    return folder


def picture(seed: int, size: tuple[int, int] = (45, 31)) -> Image.Image:
    """Coloured rectangles on a gradient: another image for every seed."""
    rng = np.random.default_rng(seed)
    width, height = size
    across = np.linspace(rng.integers(256), rng.integers(256), width)
    pixels = np.repeat(across[None, :, None], height, 0).repeat(3, 2)
    for _ in range(6):
        left, top = rng.integers(0, width), rng.integers(0, height)
        pixels[top : top + rng.integers(2, 20), left : left + rng.integers(2, 20)] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.astype(np.uint8))


SIZES = ((45, 31), (30, 77), (36, 28), (5, 3))


def pictures(first: int = 0) -> itertools.chain[Image.Image]:
    """Pictures of several sizes, without end."""
    return itertools.chain.from_iterable(
        [picture(seed, SIZES[seed % len(SIZES)])] for seed in itertools.count(first)
    )


def png(image: Image.Image) -> bytes:
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


def prompt(image: Any, text: str = "") -> Any:
    return {"prompt": text, "multi_modal_data": {"image": image}}


class Reference:
    """transformers with one checkpoint, one request at a time."""

    def __init__(self, folder: Path, processor: Any) -> None:
        self.model = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.max_length = None  # else a warning of `max_new_tokens` a call
        self.processor, self._tokenizer = processor, word_tokenizer(VOCAB)
        for module in self.model.modules():
            if isinstance(module, TrOCRSinusoidalPositionalEmbedding):
                # transformers 5.24 leaves the table on the meta device.
                module.weights = module.get_embedding(100, module.embedding_dim, module.padding_idx)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """[1, channels, height, width]."""
        values: torch.Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"]
        return values.float()

    @property
    @torch.no_grad()
    def positions(self) -> int:
        """Of the encoder's output."""
        encoded = self.model.encoder(self.pixels(picture(0)))
        return int(encoded.last_hidden_state.shape[1])

    def tokens(self, ids: list[int]) -> list[str]:
        return list(self._tokenizer.convert_ids_to_tokens(ids))

    @torch.no_grad()
    def generate(self, image: Image.Image, prefix: list[int] | None = None, **options: Any) -> list[int]:
        """The generated ids, EOS included; `prefix`: what the decoder starts from."""
        if prefix is not None:
            options["decoder_input_ids"] = torch.tensor([prefix])
        out = self.model.generate(self.pixels(image), **options)[0].tolist()
        start = prefix if prefix and out[: len(prefix)] == prefix else [START, *(prefix or [])]
        assert out[: len(start)] == start
        ids: list[int] = out[len(start) :]
        return ids[: ids.index(EOS) + 1] if EOS in ids else ids

    @torch.no_grad()
    def lead(self, image: Image.Image, ids: list[int], prefix: list[int]) -> float:
        """The smallest lead of an answer's tokens over the next likeliest, in logits."""
        decoder_ids = torch.tensor([[*prefix, *ids]])
        logits = self.model(self.pixels(image), decoder_input_ids=decoder_ids).logits[0]
        return float(-logits[len(prefix) - 1 : -1].topk(2).values.diff().max())


def cases(reference: Reference, count: int, first: int = 0) -> list[tuple[Image.Image, list[int]]]:
    """Pictures whose answers are clear, and transformers' answers."""
    found = []
    for image in itertools.islice(pictures(first), 100):
        ids = reference.generate(image, max_new_tokens=TOKENS, do_sample=False)
        if reference.lead(image, ids, [START]) > CLEAR:
            found.append((image, ids))
        if len(found) == count:
            return found
    raise AssertionError("no clear answers")
