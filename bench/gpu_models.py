"""Whole models with random weights: a decode step, the encoder, and whole answers, ours and transformers'."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import checkout
import machine
import numpy as np
import torch
from clock import Roofline, wall
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from tandem.workers.config import Device, Dtype, EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.execution.encoder import encode_packed
from tandem.workers.models.footprint import Footprint
from tandem.workers.request import Decoding, EncoderInput, EngineRequest

Prompts = list[tuple[int, ...]]
Answers = list[list[int]]
Generate = Callable[[Prompts, int], Answers]

FIRST_WORD = 10  # ids below may be special


@dataclass(frozen=True)
class Model:
    """A model's shape, and the requests it is given."""

    name: str
    make: Callable[[], Any]  # transformers' model
    start: int  # the decoder's first token
    batch: int
    source: tuple[int, int]  # tokens of an encoder input, least and most
    target: int  # tokens to generate
    goal: str = ""  # seconds of whole answers, on an H200
    batches: tuple[int, ...] = (1, 8, 32, 128)  # batch sizes whose decode steps are timed
    answered: tuple[int, ...] = (32, 128)  # and whose whole answers are


def t5(**options: Any) -> Callable[[], Any]:
    config = T5Config(**{"vocab_size": 32128, "decoder_start_token_id": 0, "eos_token_id": 1, **options})
    return lambda: T5ForConditionalGeneration(config)


def bart(**options: Any) -> Callable[[], Any]:
    config = BartConfig(
        **{"vocab_size": 50264, "decoder_start_token_id": 2, "forced_eos_token_id": None, **options}
    )
    return lambda: BartForConditionalGeneration(config)


_XL = {
    "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 32,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
MODELS = [
    Model("bart-large-cnn", bart(), 2, 128, (260, 440), 128, "at most 0.35 s for a batch of 128"),
    Model("t5-small", t5(), 0, 128, (260, 440), 128),
    Model("flan-t5-xl", t5(**_XL), 0, 128, (260, 440), 128, "at most 1.0 s for a batch of 128"),
]
_TINY_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 128}
_TINY_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip
TINY_MODELS = [
    Model("tiny-t5", t5(**_TINY_T5), 0, 4, (5, 9), 6, "", (1, 3), (2, 4)),
    Model("tiny-bart", bart(**_TINY_BART), 2, 4, (5, 9), 6, "", (1, 3), (2, 4)),
]


def greedy(tokens: int) -> Decoding:
    """The likeliest tokens, exactly so many."""
    return Decoding(
        max_tokens=tokens, min_tokens=0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
        repetition_penalty=1.0, seed=0, stop_ids=frozenset(), eos_ids=frozenset(), logprobs=None,
    )  # fmt: skip


@dataclass
class Budget:
    """The time there is, from the script's start on. Parts that would begin after it are left out, and rounds
    end with it."""

    seconds: float

    @property
    def over(self) -> bool:
        return time.monotonic() - checkout.BEGUN > self.seconds


class Bench:
    """One model in a folder, on a device, here and in transformers."""

    def __init__(self, model: Model, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.folder, self.device, self.dtype = model, folder, device, dtype

    @cached_property
    def theirs(self) -> Any:
        """transformers' model, saved for ours to load."""
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        try:
            with self.device:
                made = self.model.make().eval()
        finally:
            torch.set_default_dtype(torch.float32)
        # No answer ends by itself: all systems generate just what they are asked for.
        made.generation_config.eos_token_id = None
        made.save_pretrained(self.folder)
        return made

    def config(self, *, graphs: bool = True) -> EngineConfig:
        size, most, longest = 64, self.model.batch, self.model.source[1]
        positions = 2 * self.model.target + 64  # a step is timed when all are admitted
        device: Device = "cuda" if self.device.type == "cuda" else "cpu"
        dtype: Dtype = "bfloat16" if self.dtype == torch.bfloat16 else "float32"
        return EngineConfig(
            str(self.folder), device=device, dtype=dtype, max_num_seqs=most, max_encoder_length=longest,
            max_decoder_length=positions, max_encoder_tokens=8192, page_size=size, cuda_graphs=graphs,
            draft_tokens=0,  # a step gives each sequence a token
            num_pages=most * (-(-longest // size) + -(-positions // size)),
        )  # fmt: skip

    @cached_property
    def engine(self) -> Engine:
        return self.new_engine()

    def new_engine(self, *, graphs: bool = True) -> Engine:
        assert self.theirs is not None  # it is in the folder
        return Engine(self.config(graphs=graphs))

    def prompts(self, count: int, seed: int) -> Prompts:
        rng, size = random.Random(seed), self.theirs.config.vocab_size
        return [
            tuple(rng.randrange(FIRST_WORD, size) for _ in range(rng.randint(*self.model.source)))
            for _ in range(count)
        ]

    def close(self) -> None:
        """Gives back what the device holds: models and engines refer to themselves."""
        if "engine" in self.__dict__:
            self.engine.close()
        self.__dict__.pop("engine", None)
        self.__dict__.pop("theirs", None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # -- a decode step

    def steps(self, rounds: int, roofline: Roofline, budget: Budget) -> list[dict[str, Any]]:
        """A decode step by batch size, with graphs and without, against reading weights, K and V once."""
        engines = {"graphs": self.engine, "no graphs": self.new_engine(graphs=False)}
        sizes = [size for size in self.model.batches if size <= self.model.batch]
        found: dict[int, dict[str, list[float]]] = {size: {name: [] for name in engines} for size in sizes}
        for number in range(rounds + 1):
            for size in sizes:
                for name, engine in engines.items():
                    seconds = self._step(engine, size)
                    if number:  # the first round warms up
                        found[size][name].append(seconds)
            if number and budget.over:
                break
        engines["no graphs"].close()
        figures = []
        for size, by_engine in found.items():
            floor = self._floor_bytes(size) / roofline.bytes_per_s
            ratios = [
                one / other for one, other in zip(by_engine["no graphs"], by_engine["graphs"], strict=True)
            ]
            figures.append(
                {"batch": size}
                | {f"ms, {name}": machine.spread([1e3 * one for one in s]) for name, s in by_engine.items()}
                | {
                    "floor_ms": round(1e3 * floor, 4),
                    "of_floor": round(median(by_engine["graphs"]) / floor, 2),
                    "target": "at most 2",
                    "no_graphs_over_graphs": machine.spread(ratios),
                }
            )
        return figures

    def launches(self) -> list[dict[str, int]]:
        """Kernels and copies of a decode step by batch size, the sampler's included."""
        from torch.profiler import ProfilerActivity, profile

        cuda = self.device.type == "cuda"
        activities = [ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]
        found = []
        for size in self.model.batches:
            with self._decoding(self.engine, size) as step:
                step()
                with profile(activities=activities) as seen:
                    step()
                    if cuda:
                        torch.cuda.synchronize()
            found.append({"batch": size, "launches": sum(event.count for event in seen.key_averages())})
        return found

    def beside(self, rounds: int) -> dict[str, Any]:
        """Milliseconds of a step of half a batch while the other half's inputs are encoded, and before."""
        half, quiet, busy = self.model.batch // 2, [], []
        for number in range(rounds + 1):
            with self._decoding(self.engine, half) as step:
                before = [wall(step) for _ in range(4)]
                names = [f"new {index}" for index in range(half)]
                for name, ids in zip(names, self.prompts(half, seed=99), strict=True):
                    self.engine.submit(self.request(name, ids, 2))
                while self.engine.stats().waiting:
                    seconds = wall(step)
                    if number:
                        busy.append(1e3 * seconds)
                if number:
                    quiet += [1e3 * seconds for seconds in before]
        return {"batch": half, "quiet_ms": machine.spread(quiet), "beside_ms": machine.spread(busy)}

    @contextmanager
    def _decoding(self, engine: Engine, size: int) -> Iterator[Callable[[], object]]:
        """An engine with so many sequences that decode, and its step."""
        self.submit(engine, self.prompts(size, seed=size), [2 * self.model.target] * size)
        begun: set[str] = set()
        while len(begun) < size:
            begun |= {delta.request_id for delta in engine.step()}
        yield engine.step
        for number in range(size):
            engine.cancel(str(number))
        while engine.has_work:
            engine.step()

    def _step(self, engine: Engine, size: int) -> float:
        """Seconds of a step in which each of so many sequences gets a token."""
        count = self.model.target // 2
        with self._decoding(engine, size) as step:

            def steps() -> None:
                for _ in range(count):
                    step()

            seconds = wall(steps) / count
            assert engine.stats().running == size, "some ended meanwhile"
        return seconds

    def _floor_bytes(self, size: int) -> float:
        footprint = Footprint.of(self.config())
        low, high = self.model.source
        weights, stack = footprint.decoder_weights, self.engine.spec.decoder
        if not self.theirs.config.get_text_config(decoder=True).tie_word_embeddings:
            # Each sequence reads one row of the embedding, next to nothing.
            weights -= (stack.vocab_size or 0) * stack.d_model * self.dtype.itemsize
        source, target = (low + high) / 2, self.model.target / 2
        kv = source * footprint.cross_kv_per_position + target * footprint.self_kv_per_position
        return weights + size * kv

    # -- the encoder

    def encoder(self, rounds: int, roofline: Roofline) -> dict[str, Any]:
        encoder = self.engine.runner.encoder
        assert encoder is not None
        prompts = self.prompts(self.model.batch // 4, seed=1)
        lengths = np.array([len(ids) for ids in prompts])
        ids = np.concatenate([np.array(ids) for ids in prompts])

        @torch.inference_mode()
        def encode() -> torch.Tensor:
            return encode_packed(encoder, ids, lengths)

        encode()
        seconds = [wall(encode) for _ in range(rounds)]
        # A multiplication and an addition for each weight and token, and attention's.
        flops = 2 * Footprint.of(self.config()).encoder_weights / self.dtype.itemsize * len(ids)
        return {
            "tokens": len(ids),
            "tokens_per_s": machine.spread([len(ids) / value for value in seconds]),
            "of_peak": round(flops / median(seconds) / roofline.flops_per_s, 4),
        }

    # -- whole answers

    def answers(self, rounds: int, budget: Budget) -> dict[str, Any]:
        """Whole answers of a batch, by its size, and of a stream of mixed lengths."""
        found: dict[str, list[tuple[float, int]]] = {}
        for number in range(rounds + 1):
            _, stream = self._loads(number)
            some = {
                f"batch of {size}": (self.prompts(size, number), [self.model.target] * size)
                for size in self.model.answered
            } | {"stream": stream[1:]}
            for load, (prompts, targets) in some.items():
                seconds = wall(partial(self._serve, self.engine, prompts, targets))
                if number:
                    found.setdefault(load, []).append((seconds, sum(targets)))
            if number and budget.over:
                break
        loads = {
            load: {
                "seconds": machine.spread([seconds for seconds, _ in each]),
                "tokens_per_s": machine.spread([tokens / seconds for seconds, tokens in each]),
            }
            for load, each in found.items()
        }
        return {"target": self.model.goal, "loads": loads}

    def against(self, rounds: int, budget: Budget, *, static: bool) -> dict[str, Any]:
        """Whole answers of the largest batch, and of a stream, in turns with transformers.

        static: its static cache, too, for which it compiles the step by itself: minutes.
        """
        engine, theirs, left_out = self.engine, self._their_ways(static=static), {}
        for name, generate in theirs.items():
            if budget.over:
                left_out[name] = "the time was over"
                continue
            try:
                generate(self.prompts(self.model.batch, seed=0), self.model.target)
            except Exception as error:  # whatever transformers raises is reported and passed over
                left_out[name] = f"{type(error).__name__}: {str(error)[:300]}"
        theirs = {name: generate for name, generate in theirs.items() if name not in left_out}
        found: dict[str, dict[str, list[float]]] = {}
        for number in range(rounds + 1):
            for load, prompts, targets in self._loads(number):
                runs = {"tandem": partial(self._serve, engine, prompts, targets)}
                for name, generate in theirs.items():
                    runs[f"transformers, {name}"] = partial(self._in_batches, generate, prompts, targets)
                for name, run in runs.items():
                    rate = sum(targets) / wall(run)
                    if number:
                        found.setdefault(load, {}).setdefault(name, []).append(rate)
            if number and budget.over:
                break
        return {"left_out": left_out, **{
            load: {
                name: {
                    "tokens_per_s": machine.spread(rates),
                    "tandem_over_this": machine.spread(
                        [ours / rate for ours, rate in zip(by_system["tandem"], rates, strict=True)]
                    ),
                }
                for name, rates in by_system.items()
            }
            for load, by_system in found.items()
        }}  # fmt: skip

    def _loads(self, seed: int) -> list[tuple[str, Prompts, list[int]]]:
        rng, most = random.Random(seed), self.model.target
        batch, stream = self.prompts(self.model.batch, seed), self.prompts(2 * self.model.batch, seed)
        mixed = [rng.randint(most // 8 + 1, most) for _ in stream]
        shortened = [ids[: rng.randint(2, len(ids))] for ids in stream]
        return [("batch", batch, [most] * len(batch)), ("stream", shortened, mixed)]

    def submit(self, engine: Engine, prompts: Prompts, targets: list[int]) -> None:
        for number, (ids, target) in enumerate(zip(prompts, targets, strict=True)):
            engine.submit(self.request(str(number), ids, target))

    def request(self, name: str, ids: tuple[int, ...], target: int) -> EngineRequest:
        return EngineRequest(name, EncoderInput(name, ids), (self.model.start,), greedy(target))

    def _serve(self, engine: Engine, prompts: Prompts, targets: list[int]) -> Answers:
        self.submit(engine, prompts, targets)
        answers: Answers = [[] for _ in prompts]
        while engine.has_work:
            for delta in engine.step():
                answers[int(delta.request_id)] += delta.token_ids
        return answers

    def _in_batches(self, generate: Generate, prompts: Prompts, targets: list[int]) -> None:
        for start in range(0, len(prompts), self.model.batch):
            some = slice(start, start + self.model.batch)
            generate(prompts[some], max(targets[some]))

    def _their_ways(self, *, static: bool) -> dict[str, Generate]:
        """transformers' ways to generate."""
        ways: dict[str, dict[str, Any]] = {"dynamic cache": {}}
        if static:
            ways["static cache, compiled"] = {"cache_implementation": "static"}
        return {name: lambda p, n, how=how: self._generate(p, n, **how) for name, how in ways.items()}

    def _generate(self, prompts: Prompts, target: int, **how: Any) -> Answers:
        # Padded to one length for all batches: transformers would compile another length anew.
        longest = self.model.source[1]
        ids = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in prompts], device=self.device)
        mask = torch.tensor(
            [[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts], device=self.device
        )
        out = self.theirs.generate(
            ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=target, **how,
        )  # fmt: skip
        answers: Answers = out[:, 1:].tolist()
        return answers

    # -- the check

    def agreement(self) -> float:
        """The share of answers that equal transformers' token for token; in float32 all but near ties."""
        count = min(16, self.model.batch)
        prompts = self.prompts(count, seed=2)
        expected = self._generate(prompts, self.model.target)
        found = self._serve(self.engine, prompts, [self.model.target] * count)
        return sum(ours == theirs for ours, theirs in zip(found, expected, strict=True)) / count
