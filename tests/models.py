"""Tiny random checkpoints of every T5 variant, laid out as the published ones are.

Their weights are scaled so that they behave like trained models where tests look: greedy outputs differ
from prompt to prompt, some end by EOS within 24 tokens and others run on
(`parity/test_engine_parity.py` holds them to it).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    ByT5Tokenizer,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from tandem.workers.request import Decoding

PAD, EOS, UNK = 0, 1, 2  # as in all published T5 checkpoints; decoding starts from PAD
VOCAB = 128


@dataclass(frozen=True)
class Variant:
    """How one kind of T5 differs from the others."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    tied: bool  # the output projection is the embedding
    options: dict[str, Any]  # of the config
    eos_gain: float  # on EOS's output weights: sets how many outputs end early
    byte_tokenizer: bool = False


_DEEP_ENCODER = {"num_layers": 3, "num_decoder_layers": 2}
_GATED = {"feed_forward_proj": "gated-gelu"}

VARIANTS: dict[str, Variant] = {
    "t5": Variant(T5Config, T5ForConditionalGeneration, True, _DEEP_ENCODER, 6.0),
    # T5 v1.1 and Flan-T5 have the same layout.
    "flan": Variant(T5Config, T5ForConditionalGeneration, False, {**_DEEP_ENCODER, **_GATED}, 1.7),
    "mt5": Variant(MT5Config, MT5ForConditionalGeneration, False, {**_DEEP_ENCODER, **_GATED}, 1.7),
    # The one whose decoder is the deeper stack.
    "umt5": Variant(
        UMT5Config,
        UMT5ForConditionalGeneration,
        False,
        {"num_layers": 2, "num_decoder_layers": 3, **_GATED},
        1.8,
    ),
    "byt5": Variant(
        T5Config,
        T5ForConditionalGeneration,
        False,
        {**_DEEP_ENCODER, **_GATED, "vocab_size": 384},
        1.2,
        byte_tokenizer=True,
    ),
}


def make_checkpoint(
    folder: Path, variant: str, seed: int = 0, *, max_shard_size: str = "5GB", **overrides: Any
) -> Path:
    """Writes a checkpoint with its tokenizer into `folder` and returns it.

    `overrides` are config values. The same arguments give the same weights.
    """
    kind = VARIANTS[variant]
    config = kind.config(
        **{
            "vocab_size": VOCAB,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_heads": 4,
            "decoder_start_token_id": PAD,
            "tie_word_embeddings": kind.tied,
            **kind.options,
            **overrides,
        }
    )
    model = kind.model(config).eval()
    if not kind.tied:
        # transformers 5 ties what these models publish untied.
        model.lm_head.weight = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
    _fill(model, kind, seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)

    # What transformers 5 writes is what it made of the config; the published files say it otherwise.
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values.pop("scale_decoder_outputs", None)
    values["tie_word_embeddings"] = kind.tied
    path.write_text(json.dumps(values, indent=2))

    tokenizer = ByT5Tokenizer() if kind.byte_tokenizer else word_tokenizer(config.vocab_size)
    tokenizer.save_pretrained(folder)
    return folder


def _fill(model: PreTrainedModel, kind: Variant, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if kind.tied and name == "decoder.final_layer_norm.weight":
                weight.copy_(noise)  # of both signs, else a token's own embedding says "the same again"
            elif "layer_norm" in name:
                weight.copy_(1 + 0.3 * noise)
            elif "relative_attention_bias" in name or name == "shared.weight":
                weight.copy_(noise)
            else:
                weight.copy_(0.25 * noise)
        output = model.get_output_embeddings().weight
        output[EOS] *= kind.eos_gain


def word_tokenizer(size: int = VOCAB) -> PreTrainedTokenizerFast:
    """Whole words, `size` ids: three special ones, then `words()`. Ends every input with EOS."""
    vocabulary = {"<pad>": PAD, "</s>": EOS, "<unk>": UNK}
    for word in itertools.islice(words(), size - len(vocabulary)):
        vocabulary[word] = len(vocabulary)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def words() -> itertools.chain[str]:
    """ba, be, … zu, baba, babe, …"""
    syllables = [a + b for a, b in itertools.product("bdfgklmnprstvz", "aeiou")]
    return itertools.chain(syllables, map("".join, itertools.product(syllables, repeat=2)))


def decoding(**options: Any) -> Decoding:
    """Greedy, up to 24 tokens, EOS ends; `options` say otherwise."""
    defaults: dict[str, Any] = {
        "max_tokens": 24, "min_tokens": 0, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
        "repetition_penalty": 1.0, "seed": 0, "stop_ids": frozenset({EOS}), "eos_ids": frozenset({EOS}),
        "logprobs": None,
    }  # fmt: skip
    return Decoding(**{**defaults, **options})


def load_reference(folder: Path) -> Any:
    """The checkpoint in transformers, float32, in eval mode."""
    values = json.loads((folder / "config.json").read_text())
    kind = next(v for v in VARIANTS.values() if v.config.model_type == values["model_type"])
    return kind.model.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def reference_greedy(
    model: Any, prompts: Sequence[Sequence[int]], max_tokens: int
) -> tuple[list[list[int]], list[float]]:
    """transformers' greedy outputs (start token left out, EOS included), and how clear each was: the
    smallest lead of a token's logit over the second's, in standard deviations of the logits.

    The prompts go in one padded batch; padding is masked exactly, rounding differs in the last bits.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[PAD] * (longest - len(prompt))] for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
    # use_cache: transformers 5.23 sizes the cache by the encoder and breaks on a deeper decoder.
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        do_sample=False,
        use_cache=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    leads = torch.stack(
        [-logits.topk(2).values.diff()[:, 0] / logits.std(dim=-1) for logits in out.logits], dim=1
    )
    outputs, clear = [], []
    for row, lead in zip(out.sequences[:, 1:].tolist(), leads, strict=True):
        end = row.index(EOS) + 1 if EOS in row else len(row)
        outputs.append(row[:end])
        clear.append(float(lead[:end].min()))
    return outputs, clear
