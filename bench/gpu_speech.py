"""Whisper's published shapes with random weights: the encoder by windows, a decode step, clips a second."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from statistics import median
from typing import Any, Final

import machine
import numpy as np
import torch
from clock import Roofline, wall
from gpu_media import MediaBench
from gpu_models import Model, Prompts, greedy
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from tandem.inputs import Media
from tandem.media import wav
from tandem.workers.execution.encoder import encode_packed
from tandem.workers.models.footprint import Footprint
from tandem.workers.request import EncoderInput, EngineRequest

RATE: Final = 16_000  # samples a second
HOP: Final = 160  # samples a frame
CLIP_S: Final = (0.1, 0.3)  # of a window: seconds of a clip, least and most
# start of transcript, English, transcribe, no times: the ids of large-v3
PREFIX: Final = (50258, 50259, 50360, 50364)


def whisper(**options: Any) -> Callable[[], Any]:
    config = WhisperConfig(
        **{
            "vocab_size": 51866, "num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32,
            "encoder_attention_heads": 20, "decoder_attention_heads": 20, "encoder_ffn_dim": 5120,
            "decoder_ffn_dim": 5120, "decoder_layers": 32, "decoder_start_token_id": PREFIX[0],
            "suppress_tokens": None, "begin_suppress_tokens": None, **options,
        }
    )  # fmt: skip
    return lambda: WhisperForConditionalGeneration(config)


_BAR = "69.9 clips/s at 32 and 11.4 at one, what another server says of large-v3 on an H200"
SPEECH = [
    Model("whisper-large-v3", whisper(), PREFIX[0], 32, (1500, 1500), 17, _BAR, (1, 8, 32)),
    Model(
        "whisper-large-v3-turbo", whisper(decoder_layers=4), PREFIX[0], 32, (1500, 1500), 17, "", (1, 8, 32)
    ),
]  # fmt: skip
TINY_SPEECH = [
    Model(
        "tiny-whisper",
        whisper(vocab_size=51866, num_mel_bins=16, d_model=32, encoder_layers=2, decoder_layers=2,
                encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
                decoder_ffn_dim=48, max_source_positions=50),
        PREFIX[0], 4, (50, 50), 6, batches=(1, 3),
    )
]  # fmt: skip


class SpeechBench(MediaBench):
    """A Whisper in a folder: an encoder input is a window of audio, of as many positions as all others."""

    unit = "clips"

    @cached_property
    def theirs(self) -> Any:
        made = super().theirs
        config = made.config
        WhisperFeatureExtractor(
            config.num_mel_bins, RATE, HOP, chunk_length=2 * config.max_source_positions * HOP // RATE
        ).save_pretrained(self.folder)
        return made

    def prompts(self, count: int, seed: int) -> Prompts:  # noqa: ARG002 - windows differ in their features
        return [(self.front.placeholder_id,) * self.front.positions] * count

    def features(self, seed: int) -> torch.Tensor:
        """A window's, float32 [1, mel bins, frames]."""
        made = torch.Generator().manual_seed(seed)
        return torch.rand(1, *self.front.features, generator=made) * 2 - 1

    def window(self, name: str, **of_input: Any) -> EncoderInput:
        return EncoderInput(name, (self.front.placeholder_id,) * self.front.positions, **of_input)

    def request(self, name: str, ids: tuple[int, ...], target: int) -> EngineRequest:  # noqa: ARG002
        features = self.features(zlib.crc32(name.encode()))
        return self.asked(self.window(name, features=features), target)

    def asked(self, encoder: EncoderInput, target: int) -> EngineRequest:
        return EngineRequest(encoder.key, encoder, PREFIX, greedy(target))

    def given(self, name: str, media: Media) -> EncoderInput:
        return self.window(name, media=(media,))

    def encoder(self, rounds: int, roofline: Roofline) -> Any:
        """Windows in a second, by how many are encoded at once."""
        encoder = self.engine.runner.encoder
        assert encoder is not None
        flops = 2 * Footprint.of(self.config()).encoder_weights / self.dtype.itemsize
        found = []
        for count in self.model.batches:
            prompts = self.prompts(count, 0)
            features = torch.cat([self.features(number) for number in range(count)]).to(self.device)
            ids, lengths = np.concatenate(prompts), np.array([len(one) for one in prompts])

            @torch.inference_mode()
            def encode(ids: Any = ids, lengths: Any = lengths, of: torch.Tensor = features) -> torch.Tensor:
                assert encoder.front is not None
                return encode_packed(encoder, ids, lengths, encoder.front(of))

            encode()
            seconds = [wall(encode) for _ in range(rounds)]
            found.append(
                {
                    "batch": count,
                    "tokens": len(ids),
                    "tokens_per_s": machine.spread([len(ids) / value for value in seconds]),
                    "windows_per_s": machine.spread([count / value for value in seconds]),
                    "of_peak": round(flops * len(ids) / median(seconds) / roofline.flops_per_s, 4),
                }
            )
        return found

    def files(self) -> Iterator[Media]:
        """Noise of ever-changing lengths, as WAV files."""
        rng, made = random.Random(0), np.random.default_rng(0)
        window = self.front.features[1] * HOP
        noise = made.standard_normal(window).astype(np.float32) / 10
        while True:
            begin = rng.randrange(window // 2)
            yield Media(
                "audio", wav(noise[begin : begin + int(window * rng.uniform(*CLIP_S))], RATE, "audio")
            )

    def agreement(self) -> float:
        """The share of answers whose every token is what transformers' logits say after those before it."""
        count = min(8, self.model.batch)
        answers = self._serve(self.engine, self.prompts(count, 0), [self.model.target] * count)
        ids = torch.tensor([[*PREFIX, *answer] for answer in answers], device=self.device)
        windows = [self.request(str(number), (), 1).encoder.features for number in range(count)]
        features = torch.cat([one for one in windows if one is not None]).to(self.device, self.dtype)
        with torch.inference_mode():
            said = self.theirs(input_features=features, decoder_input_ids=ids).logits.argmax(-1)
        first = len(PREFIX)
        return float((said[:, first - 1 : -1] == ids[:, first:]).all(1).float().mean())
