"""Published shapes of models that read images, with random weights: the front, a decode step, images a
second."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any, Final

import machine
import numpy as np
import torch
from clock import Roofline, Work, wall
from gpu_media import MediaBench
from gpu_models import FIRST_WORD, Model, Prompts, greedy
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Florence2Config,
    Florence2ForConditionalGeneration,
    MllamaConfig,
    MllamaForConditionalGeneration,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tandem.inputs import Media
from tandem.limits import DEFAULT_LIMITS
from tandem.workers.config import EngineConfig
from tandem.workers.execution.encoder import encode_packed
from tandem.workers.request import EncoderInput, EngineRequest
from tandem.workers.requests.media import own_positions, read_processor
from tandem.workers.requests.prompts.cross_spans import cross_spans

PICTURES: Final = 8  # different ones
PROMPT: Final = 16  # tokens next to an image, where the model reads some


@dataclass(frozen=True, kw_only=True)
class VisionModel(Model):
    """A model that reads images."""

    processor: Callable[[], Any]  # transformers' image processor
    image: tuple[int, int]  # width and height of the files, in pixels
    question: int = 0  # tokens after an image in the encoder's input
    prompt: int = 0  # tokens that the decoder starts from, where the image's token is one of them


def trocr(side: int, patch: int, vit: dict[str, Any], **options: Any) -> Callable[[], Any]:
    encoder = ViTConfig(image_size=side, patch_size=patch, qkv_bias=False, **vit)
    decoder = TrOCRConfig(
        cross_attention_hidden_size=encoder.hidden_size, use_learned_position_embeddings=True, **options
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=2, pad_token_id=1, eos_token_id=2
    )
    return lambda: VisionEncoderDecoderModel(config)


def florence(vision: dict[str, Any], text: dict[str, Any]) -> Callable[[], Any]:
    config = Florence2Config(
        vision_config=vision,
        text_config={"model_type": "bart", "forced_bos_token_id": None, "forced_eos_token_id": None, **text},
        image_token_id=text["vocab_size"] - 1,
    )
    return lambda: Florence2ForConditionalGeneration(config)


def llama(vision: dict[str, Any], text: dict[str, Any]) -> Callable[[], Any]:
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=text["vocab_size"])
    return lambda: MllamaForConditionalGeneration(config)


def _square(kind: Any, side: int, **options: Any) -> Callable[[], Any]:
    return lambda: kind(size={"height": side, "width": side}, **options)


def _florence_model(name: str, width: int, layers: int, heads: int, first: int) -> VisionModel:
    """first: the width of DaViT's first stage."""
    make = florence(
        {
            "embed_dim": [first << stage for stage in range(4)], "projection_dim": width,
            "num_heads": [first // 32 << stage for stage in range(4)],
            "num_groups": [first // 32 << stage for stage in range(4)],
        },
        {
            "vocab_size": 51_290, "d_model": width, "encoder_layers": layers, "decoder_layers": layers,
            "encoder_attention_heads": heads, "decoder_attention_heads": heads, "encoder_ffn_dim": 4 * width,
            "decoder_ffn_dim": 4 * width, "max_position_embeddings": 1024,
        },
    )  # fmt: skip
    source = 577 + PROMPT
    return VisionModel(
        name, make, 2, 32, (source, source), 32, batches=(1, 8, 32), question=PROMPT, image=(640, 480),
        processor=_square(CLIPImageProcessorPil, 768, do_center_crop=False),
    )  # fmt: skip


_LONG = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
VISION = [
    VisionModel(
        "trocr-base",
        trocr(384, 16, {}, d_model=1024, decoder_layers=12, decoder_attention_heads=16, decoder_ffn_dim=4096,
              vocab_size=50_265, max_position_embeddings=512),
        2, 32, (577, 577), 24, batches=(1, 8, 32), image=(512, 64),
        processor=_square(ViTImageProcessorPil, 384),
    ),
    _florence_model("florence-2-base", 768, 6, 12, 128),
    _florence_model("florence-2-large", 1024, 12, 16, 256),
    # One image of four tiles.
    VisionModel(
        "llama-3.2-11b-vision",
        llama({"image_size": 560}, {"vocab_size": 128_256, "rope_parameters": _LONG}),
        128_000, 32, (6404, 6404), 32, batches=(1, 8, 32), image=(1120, 1120), prompt=PROMPT,
        processor=_square(MllamaImageProcessorPil, 560),
    ),
]  # fmt: skip
_TINY_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip
TINY_VISION = [
    VisionModel(
        "tiny-trocr",
        trocr(24, 8, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "intermediate_size": 48},
              d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, vocab_size=128,
              max_position_embeddings=64),
        2, 4, (10, 10), 6, batches=(1, 3), image=(50, 20), processor=_square(ViTImageProcessorPil, 24),
    ),
    VisionModel(
        "tiny-florence",
        florence({"embed_dim": [8, 16], "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2],
                  "patch_padding": [3, 1], "patch_prenorm": [False, True], "num_heads": [2, 4],
                  "num_groups": [2, 4], "window_size": 4, "projection_dim": 32}, _TINY_BART),
        2, 4, (22, 22), 6, batches=(1, 3), image=(40, 30), question=5,
        processor=_square(CLIPImageProcessorPil, 32, do_center_crop=False),
    ),
    VisionModel(
        "tiny-llama",
        llama({"hidden_size": 24, "num_hidden_layers": 2, "num_global_layers": 1, "attention_heads": 2,
               "intermediate_size": 40, "vision_output_dim": 72, "image_size": 14, "patch_size": 7,
               "intermediate_layers_indices": [0, 1]},
              {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4,
               "num_key_value_heads": 2, "intermediate_size": 48, "cross_attention_layers": [1],
               "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "rope_parameters": _LONG}),
        1, 4, (20, 20), 6, batches=(1, 3), image=(28, 28), prompt=4,
        processor=_square(MllamaImageProcessorPil, 14),
    ),
]  # fmt: skip


class VisionBench(MediaBench):
    """A model in a folder whose encoder inputs are an image each, with a question where it reads one."""

    unit = "images"
    model: VisionModel

    @cached_property
    def theirs(self) -> Any:
        made = super().theirs
        self.model.processor().save_pretrained(self.folder)
        return made

    def config(self, *, graphs: bool = True) -> EngineConfig:
        made = super().config(graphs=graphs)
        if not self.model.prompt:
            return made
        # A page holds several times the positions of an image, see `ModelSpec.cross_planes`.
        decoder = self.theirs.config.text_config
        crossing = len(decoder.cross_attention_layers)
        planes = max(1, (decoder.num_hidden_layers - crossing) // crossing)
        assert made.num_pages is not None
        assert made.page_size is not None
        size, most = made.page_size, made.max_num_seqs
        spared = -(-made.max_encoder_length // size) - -(-made.max_encoder_length // (size * planes))
        return replace(made, num_pages=made.num_pages - most * spared)

    @cached_property
    def pictures(self) -> list[bytes]:
        """Files, of patches of colours."""
        from PIL import Image

        made = []
        for seed in range(PICTURES):
            coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(coarse).resize(self.model.image, Image.Resampling.BICUBIC).save(file, "PNG")
            made.append(file.getvalue())
        return made

    @cached_property
    def own(self) -> int:
        """Positions of an image without its padding; all files have as many."""
        processor = read_processor(self.folder, self.front)
        assert processor is not None
        return own_positions(processor, Media("image", self.pictures[0]), DEFAULT_LIMITS)

    @cached_property
    def features(self) -> list[torch.Tensor]:
        """The pictures', float32 [1, *FrontSpec.features] each."""
        found = []
        for number, data in enumerate(self.pictures):
            made = self.engine.prepare(self.given(f"picture {number}", Media("image", data))).features
            assert made is not None
            found.append(made)
        return found

    def prompts(self, count: int, seed: int) -> Prompts:
        rng, front = random.Random(seed), self.front
        padding = () if front.padding_id is None else (front.padding_id,) * (front.positions - self.own)
        image = (front.placeholder_id,) * self.own + padding
        words = range(FIRST_WORD, self.engine.spec.vocab_size - 1)
        return [(*image, *rng.choices(words, k=self.model.question)) for _ in range(count)]

    def files(self) -> Iterator[Media]:
        while True:
            for data in self.pictures:
                yield Media("image", data)

    def given(self, name: str, media: Media) -> EncoderInput:
        return EncoderInput(name, self.prompts(1, zlib.crc32(name.encode()))[0], media=(media,))

    def asked(self, encoder: EncoderInput, target: int) -> EngineRequest:
        spec, prefix = self.engine.spec, [self.model.start]
        if spec.media_token_id is None:
            return EngineRequest(encoder.key, encoder, tuple(prefix), greedy(target))
        words = range(FIRST_WORD, spec.vocab_size)
        after = random.Random(encoder.key).choices(words, k=self.model.prompt - 2)
        prefix = [spec.media_token_id, *prefix, *after]
        spans = cross_spans(prefix, spec.media_token_id, [self.own], len(encoder.token_ids))
        return EngineRequest(encoder.key, encoder, tuple(prefix), greedy(target), cross_spans=spans)

    def request(self, name: str, ids: tuple[int, ...], target: int) -> EngineRequest:
        features = self.features[zlib.crc32(name.encode()) % PICTURES]
        return self.asked(EncoderInput(name, ids, features=features), target)

    def encoder(self, rounds: int, roofline: Roofline) -> Any:
        """The front, and the whole encoder, by how many images are encoded at once. FLOPs are those that
        PyTorch counts of one image: products and convolutions, our own attention left out."""
        encoder = self.engine.runner.encoder
        assert encoder is not None
        front = encoder.embedding.front
        assert front is not None
        found = []
        for count in self.model.batches:
            prompts = self.prompts(count, 0)
            features = torch.cat([self.features[n % PICTURES] for n in range(count)]).to(self.device)
            ids, lengths = np.concatenate(prompts), np.array([len(one) for one in prompts])

            @torch.inference_mode()
            def encode(ids: Any = ids, lengths: Any = lengths, of: torch.Tensor = features) -> torch.Tensor:
                return encode_packed(encoder, ids, lengths, front(of))

            @torch.inference_mode()
            def before(of: torch.Tensor = features) -> torch.Tensor:
                return front(of)

            with FlopCounterMode(display=False) as counted:
                encode()
            before()
            works: dict[str, Work] = {"front": before, "encoder": encode}
            seconds = {name: [wall(work) for _ in range(rounds)] for name, work in works.items()}
            flops = counted.get_total_flops() / median(seconds["encoder"])
            found.append(
                {
                    "batch": count,
                    "front_ms": machine.spread([1e3 * value for value in seconds["front"]]),
                    "encoder_ms": machine.spread([1e3 * value for value in seconds["encoder"]]),
                    "images_per_s": machine.spread([count / value for value in seconds["encoder"]]),
                    "of_peak": round(flops / roofline.flops_per_s, 4),
                }
            )
        return found

    def agreement(self) -> float:
        """The share of answers whose every token is what transformers' logits say after those before it."""
        prompts = self.prompts(min(4, self.model.batch), 0)
        answers = self._serve(self.engine, prompts, [self.model.target] * len(prompts))
        said = [self._said(str(number), ids, answers[number]) for number, ids in enumerate(prompts)]
        return sum(ours == theirs for ours, theirs in zip(answers, said, strict=True)) / len(answers)

    @torch.inference_mode()
    def _said(self, name: str, ids: tuple[int, ...], answer: list[int]) -> list[int]:
        """transformers' likeliest token after each part of an answer to the request of this name."""
        request = self.request(name, ids, self.model.target)
        assert request.encoder.features is not None
        features = request.encoder.features.to(self.device, self.dtype)
        given = torch.tensor([[*request.prefix_ids, *answer]], device=self.device)
        if (vision := self.front.vision) is not None:  # the image's token is the first
            number = int(request.encoder.features[0, 0, -1])
            own = torch.arange(vision.tiles) < np.prod(vision.arrangements[number - 1])
            pixels = features[..., :-1].unflatten(-1, (vision.channels, vision.tile_size, vision.tile_size))
            inputs = {
                "input_ids": given,
                "pixel_values": pixels.unsqueeze(1),
                "aspect_ratio_ids": torch.tensor([[number]]),
                "aspect_ratio_mask": own.long().view(1, 1, -1),
                "cross_attention_mask": own.long().expand(1, given.shape[1], 1, -1),
            }
        else:
            inputs = {"pixel_values": features, "decoder_input_ids": given}
            if self.model.question:
                inputs["input_ids"] = torch.tensor([ids])
        logits = self.theirs(**{key: value.to(self.device) for key, value in inputs.items()}).logits[0]
        found: list[int] = logits[len(request.prefix_ids) - 1 : -1].argmax(-1).tolist()
        return found
