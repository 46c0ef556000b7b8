"""What the engine and its peers are given: models, and the loads of requests to them. See engine.py."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from tandem.quickstart import PATH as QUICKSTART

BATCH = 32  # the static batches' size, and Tandem's sequences at once
LONG = {512: 4, 1024: 2, 2048: 2, 4000: 1}  # tokens of an input, EOS included: requests
LONG_TOKENS = 8  # generated for each

SHAPES: dict[str, PreTrainedConfig] = {
    "T5-small": T5Config(vocab_size=32_128, decoder_start_token_id=0),
    "T5-base": T5Config(
        vocab_size=32_128, d_model=768, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0
    ),
    # normalize_*: which of the shapes of BART's family it is, as its config.json says and CTranslate2 reads.
    "BART-large": BartConfig(forced_eos_token_id=None, normalize_before=False, normalize_embedding=True),
}


@dataclass(frozen=True)
class Request:
    ids: list[int]
    tokens: int | None  # to generate; None: until the model ends


@dataclass(frozen=True)
class Load:
    name: str
    requests: list[Request]
    beams: int = 1
    at_once: int = BATCH
    arrivals: list[float] | None = None  # each request's arrival, seconds from the start


class Requests(Protocol):
    """What one model is asked."""

    def mixed(self, count: int, rng: random.Random) -> list[Request]:
        """Requests of mixed lengths."""


class RandomIds:
    """For a model of random weights, which takes any ids."""

    def __init__(self, shape: PreTrainedConfig) -> None:
        self._eos, self._ids = int(shape.eos_token_id), range(_specials(shape), shape.vocab_size)

    def mixed(self, count: int, rng: random.Random) -> list[Request]:
        return [Request(self._input(rng, rng.randrange(11, 81)), rng.randrange(8, 65)) for _ in range(count)]

    def long(self, count: int, rng: random.Random, length: int) -> list[Request]:
        """Requests whose inputs have `length` tokens, with LONG_TOKENS to generate."""
        return [Request(self._input(rng, length), LONG_TOKENS) for _ in range(count)]

    def _input(self, rng: random.Random, length: int) -> list[int]:
        return [*rng.choices(self._ids, k=length - 1), self._eos]


_WHO = ("I", "We", "My mother", "The teacher", "Tom", "Mary", "The old man next door", "Nobody")
_DOES = ("saw", "would like to buy", "forgot", "was looking for", "never liked", "read about", "sold")
_WHAT = ("a house", "the book on the table", "a small red car", "the train to Paris", "some bread", "it")
_WHEN = ("yesterday", "last year", "when it was raining", "before the war", "at the station", "again")


class Sentences:
    """To translate, for the bundled model, which ends by EOS."""

    def __init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(QUICKSTART)

    def mixed(self, count: int, rng: random.Random) -> list[Request]:
        requests = []
        for _ in range(count):
            number = rng.choice((1, 1, 1, 2, 3, 5))
            clauses = [" ".join(map(rng.choice, (_WHO, _DOES, _WHAT, _WHEN))) for _ in range(number)]
            text = f"translate English to {rng.choice(('French', 'German'))}: {', and '.join(clauses)}."
            requests.append(Request(self._tokenizer(text).input_ids, None))
        return requests


def long_name(length: int) -> str:
    return f"{length} in"


def _long(length: int) -> Callable[[Requests, random.Random], Load]:
    def load(make: Requests, rng: random.Random) -> Load:
        assert isinstance(make, RandomIds), "no sentence is so long"
        return Load(long_name(length), make.long(LONG[length], rng, length), at_once=1)

    return load


LOADS: dict[str, Callable[[Requests, random.Random], Load]] = {
    "1": lambda make, rng: Load("1", make.mixed(5, rng), at_once=1),
    "8": lambda make, rng: Load("8", make.mixed(8, rng), at_once=8),
    "stream": lambda make, rng: Load("stream", make.mixed(3 * BATCH, rng)),
    # The times are set when Tandem's rate is known.
    "arrivals": lambda make, rng: Load("arrivals", make.mixed(3 * BATCH, rng), arrivals=[]),
    "beam 4": lambda make, rng: Load("beam 4", make.mixed(16, rng), beams=4, at_once=16),
    **{long_name(length): _long(length) for length in LONG},
}
MIXED = ("1", "8", "stream", "arrivals", "beam 4")


def loads(make: Requests, seed: int, names: Sequence[str]) -> Iterator[Load]:
    """The same requests for a seed, whichever loads are named; those of arrivals are the stream's."""
    for name in names:
        of = "stream" if name == "arrivals" else name
        yield LOADS[name](make, random.Random(f"{seed} {of}"))


@dataclass(frozen=True)
class Model:
    shape: str | None  # of random weights; None: the bundled model
    loads: tuple[str, ...]
    larger: bool = False  # so that not every system's figures are worth their time

    def prepare(self, folder: Path) -> tuple[Path, Requests]:
        """The model's folder, made in `folder` where its weights are random, and what it is asked."""
        if self.shape is None:
            return QUICKSTART, Sentences()
        make_model(folder, self.shape)
        return folder, RandomIds(SHAPES[self.shape])


# Arrivals at the larger shapes would take long and say what the small one's do.
_LARGER = ("1", "8", "stream", "beam 4")
MODELS = {
    "random T5-small": Model("T5-small", (*MIXED, *map(long_name, (512, 2048, 4000)))),
    "quickstart": Model(None, MIXED),
    "random T5-base": Model("T5-base", (*_LARGER, *map(long_name, (512, 2048, 4000))), larger=True),
    "random BART-large": Model("BART-large", (*_LARGER, *map(long_name, (512, 1024))), larger=True),
}


def make_model(folder: Path, shape: str = "T5-small") -> None:
    """A checkpoint of random weights that never ends by itself, with a word for each id."""
    config = SHAPES[shape]
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    words: dict[str, Any] = {f"w{i}": i for i in range(_specials(config), config.vocab_size)}
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words |= {special["pad_token"]: config.pad_token_id, special["eos_token"]: config.eos_token_id}
    if (bos := getattr(config, "bos_token_id", None)) is not None:
        special["bos_token"] = "<s>"
        words["<s>"] = bos
    words["<unk>"] = _specials(config) - 1
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def _specials(shape: PreTrainedConfig) -> int:
    """Ids of special tokens, which are the first: the model's own, and the unknown word's."""
    own = (shape.pad_token_id, getattr(shape, "bos_token_id", None), shape.eos_token_id)
    return 1 + max(token for token in own if token is not None) + 1
