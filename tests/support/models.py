"""Tiny random checkpoints of every family, laid out as the published ones are.

Their weights are scaled so that they behave like trained models where tests look: greedy outputs differ
from prompt to prompt, some end by EOS within 24 tokens and others run on
(`parity/test_matrix.py` holds them to it).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    ByT5Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tandem.workers.request import Decoding

PAD, EOS, UNK = 0, 1, 2  # in all of them, as in the published T5 checkpoints
VOCAB = 128


@dataclass(frozen=True)
class Variant:
    """How one kind of model differs from the others."""

    name: str  # of transformers' classes, without Config and ForConditionalGeneration
    tied: bool  # the output projection is the embedding
    options: dict[str, Any]  # of the config
    eos_gain: float  # on EOS's output weights: sets how many outputs end early
    byte_tokenizer: bool = False
    head: str = "ForConditionalGeneration"
    halves: tuple[tuple[str, dict[str, Any]], ...] = ()  # configs an EncoderDecoderModel is put together from

    def make(self, **overrides: Any) -> PreTrainedModel:
        options = {**self.options, **overrides}
        if self.halves:
            halves = [
                _class(name, "Config")(vocab_size=VOCAB, **{**values, **options.pop(f"{side}_options", {})})
                for side, (name, values) in zip(("encoder", "decoder"), self.halves, strict=True)
            ]
            config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*halves, **options)
        else:
            config = _class(self.name, "Config")(
                **{"vocab_size": VOCAB, "tie_word_embeddings": self.tied, **options}
            )
        return _class(self.name, self.head)(config).eval()


def _class(name: str, suffix: str) -> Any:
    return getattr(transformers, name + suffix)


_T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2,
    "decoder_start_token_id": PAD,
}  # fmt: skip
_GATED = {**_T5, "feed_forward_proj": "gated-gelu"}

T5_VARIANTS: dict[str, Variant] = {
    "t5": Variant("T5", True, _T5, 6.0),
    # T5 v1.1 and Flan-T5 have the same layout.
    "flan": Variant("T5", False, _GATED, 1.7),
    "mt5": Variant("MT5", False, _GATED, 1.7),
    # The one whose decoder is the deeper stack.
    "umt5": Variant("UMT5", False, {**_GATED, "num_layers": 2, "num_decoder_layers": 3}, 1.8),
    "byt5": Variant("T5", False, {**_GATED, "vocab_size": 384}, 1.2, byte_tokenizer=True),
}
# Only their forward differs.
T5_LIKE_VARIANTS: dict[str, Variant] = {
    "ul2": Variant("T5", False, {**_T5, "feed_forward_proj": "gated-silu", "d_kv": 16}, 1.7),
    "longt5": Variant("LongT5", True, {**_GATED, "local_radius": 5}, 2.0),
    "longt5-tglobal": Variant(
        "LongT5",
        False,
        {
            **_GATED,
            "local_radius": 4,
            "encoder_attention_type": "transient-global",
            "global_block_size": 8,
            "relative_attention_num_buckets": 16,
            "relative_attention_max_distance": 12,
        },
        1.7,
    ),
}

# Their special ids are not the published ones, but stand in the same relation to each other.
_BART = {
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 64,
    "max_position_embeddings": 160, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 3,
    "decoder_start_token_id": EOS, "forced_eos_token_id": None,
}  # fmt: skip
_DEEP_DECODER = {**_BART, "encoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 2}
_SCALED = {"scale_embedding": True}
_MARIAN = {**_BART, **_SCALED, "decoder_start_token_id": PAD, "activation_function": "swish"}

BART_VARIANTS: dict[str, Variant] = {
    "bart": Variant("Bart", True, _BART, 2.6),
    "bart-untied": Variant("Bart", False, {**_DEEP_DECODER, **_SCALED, "activation_function": "relu"}, 1.4),
    "mbart": Variant("MBart", True, {**_BART, **_SCALED}, 0.9),
    "plbart": Variant("PLBart", True, {**_BART, **_SCALED, "decoder_start_token_id": None}, 2.2),
    "blenderbot": Variant("Blenderbot", True, {**_DEEP_DECODER, "decoder_start_token_id": 3}, 2.5),
    "blenderbot-small": Variant("BlenderbotSmall", True, {**_BART, **_SCALED}, 1.7),
    "pegasus": Variant("Pegasus", True, {**_DEEP_DECODER, **_SCALED, "decoder_start_token_id": PAD}, 2.2),
    "pegasus-untied": Variant("Pegasus", False, {**_BART, "activation_function": "relu"}, 2.2),
    "marian": Variant("Marian", True, _MARIAN, -2.0, head="MTModel"),
    "marian-two-vocabularies": Variant(
        "Marian",
        False,
        {**_MARIAN, "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 117},
        5.0,
        head="MTModel",
    ),
    "m2m-100": Variant("M2M100", True, {**_BART, **_SCALED}, 1.5),
    "nllb": Variant("M2M100", True, {**_DEEP_DECODER, **_SCALED}, 1.8),
}

_BERT = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 170, "pad_token_id": PAD,
}  # fmt: skip
_BERT_DECODER = {**_BERT, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE_DECODER = {**_BERT_DECODER, "hidden_size": 48, "hidden_act": "gelu_new"}
_GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 3, "eos_token_id": EOS}
_IDS = {"decoder_start_token_id": 3, "pad_token_id": PAD, "eos_token_id": EOS}


def _together(encoder: str, decoder: str, decoder_values: dict[str, Any], eos_gain: float) -> Variant:
    halves = (encoder, _BERT), (decoder, decoder_values)
    return Variant("EncoderDecoder", True, _IDS, eos_gain, head="Model", halves=halves)


ENCODER_DECODER_VARIANTS: dict[str, Variant] = {
    "bert2bert": _together("Bert", "Bert", _BERT_DECODER, 2.0),
    "bert2bert-wider": _together("Bert", "Bert", _WIDE_DECODER, -2.0),
    "roberta2roberta": _together("Roberta", "Roberta", _BERT_DECODER, 2.0),
    "bert2gpt2": _together("Bert", "GPT2", _GPT2, 1.0),
    "bert-generation": _together("BertGeneration", "BertGeneration", _BERT_DECODER, 2.6),
}

_GEMMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 9,
    "sliding_window": 6, "max_position_embeddings": 192, "bos_token_id": 3, "eos_token_id": EOS,
    "pad_token_id": PAD,
}  # fmt: skip
_CAPPED = {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
_GEMMA3 = {**_GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
           "image_size": 8, "patch_size": 4, "model_type": "siglip_vision_model"}  # fmt: skip
_STRETCHED = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
T5GEMMA_VARIANTS: dict[str, Variant] = {
    "t5gemma": Variant(
        "T5Gemma",
        True,
        {
            "encoder": _CAPPED,
            "decoder": {**_CAPPED, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8},
        },
        -1.7,
    ),
    "t5gemma2": Variant(
        "T5Gemma2",
        True,
        {
            "encoder": {
                "text_config": {**_GEMMA3, "rope_parameters": _STRETCHED},
                "vision_config": _VISION,
                "mm_tokens_per_image": 4,
                "image_token_index": VOCAB,
                "eoi_token_index": VOCAB + 1,
            },
            "decoder": {
                **_GEMMA3,
                "num_hidden_layers": 2,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "image_token_index": VOCAB,
        },
        2.0,
    ),
}

_ALONE = {**_GPT2, "n_positions": 192}
_PHI = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 192, "bos_token_id": 3, "eos_token_id": EOS, "pad_token_id": PAD,
}  # fmt: skip
DECODER_VARIANTS: dict[str, Variant] = {
    "gpt2": Variant("GPT2", True, {**_ALONE, "pad_token_id": PAD}, 2.0, head="LMHeadModel"),
    "gpt2-untied": Variant("GPT2", False, {**_ALONE, "n_inner": 40}, 1.2, head="LMHeadModel"),
    "phi": Variant("Phi", False, _PHI, 1.2, head="ForCausalLM"),
}

VARIANTS = (
    T5_VARIANTS
    | T5_LIKE_VARIANTS
    | T5GEMMA_VARIANTS
    | BART_VARIANTS
    | ENCODER_DECODER_VARIANTS
    | DECODER_VARIANTS
)


def make_checkpoint(
    folder: Path, variant: str, seed: int = 0, *, max_shard_size: str = "5GB", **overrides: Any
) -> Path:
    """Writes a checkpoint with its tokenizer into `folder` and returns it.

    `overrides` are config values; those of halves are in `encoder_options` and `decoder_options`. The same
    arguments give the same weights.
    """
    kind = VARIANTS[variant]
    model = kind.make(**overrides)
    if not kind.tied and kind.name.endswith("T5"):
        # transformers 5 ties what these models publish untied.
        model.lm_head.weight = nn.Parameter(torch.empty(model.config.vocab_size, model.config.d_model))
    fill(model, kind, seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)

    # What transformers 5 writes is what it made of the config; the published files say it otherwise.
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values.pop("scale_decoder_outputs", None)
    values["tie_word_embeddings"] = kind.tied
    path.write_text(json.dumps(values, indent=2))

    tokenizer = (
        ByT5Tokenizer()
        if kind.byte_tokenizer
        else word_tokenizer(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    )
    tokenizer.save_pretrained(folder)
    return folder


def fill(model: PreTrainedModel, kind: Variant, seed: int, eos: int = EOS) -> None:
    """Random weights. `eos`: the token that ends answers, whose output weights `eos_gain` scales."""
    generator = torch.Generator().manual_seed(seed)
    weights = dict([*model.named_parameters(), *model.named_buffers()])
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in weights}
    norms = [name for name, module in modules.items() if "Norm" in type(module).__name__]
    outside = re.compile(r"^(model\.)?encoder|embed|bias$")
    weighty = [name for name in norms if not outside.search(name)]
    final = "model.decoder.norm.weight" if "Gemma" in kind.name else weighty[-1]
    with torch.no_grad():
        for name, weight in weights.items():
            module = modules[name]
            if "Sinusoidal" in type(module).__name__ or not weight.is_floating_point():
                continue  # computed
            noise = torch.randn(weight.shape, generator=generator)
            if kind.tied and name == final:
                weight.copy_(noise)  # of both signs, else a token's own embedding says "the same again"
            elif name in norms and name.endswith("weight"):
                weight.copy_(1 + 0.3 * noise)
            elif "relative_attention_bias" in name or isinstance(module, nn.Embedding):
                scaled = "Gemma" in kind.name or getattr(module, "embed_scale", 1.0) != 1.0
                weight.copy_(0.25 * noise if scaled else noise)
            else:
                weight.copy_(_scale(name, kind) * noise)
            if name in norms and "Gemma" in kind.name:
                weight -= 1  # as it is published
        output = model.get_output_embeddings().weight
        output[eos] *= kind.eos_gain
        if not kind.name.endswith("T5"):
            output[PAD] = 0  # never generated: families disagree on the position of one


def _scale(name: str, kind: Variant) -> float:
    """The scale of a weight. With LayerNorm, answers follow their prompts only where cross-attention
    outweighs the rest."""
    if kind.name.endswith("T5") or any(part in name for part in ("embed", "shared", "lm_head", "to_dec")):
        return 0.25
    if "encoder_attn" in name or "crossattention" in name:
        return 0.1 if name.endswith("bias") else 0.5
    if name.endswith("bias") or re.search("fc|mlp|intermediate|output", name):
        return 0.1
    return 0.15


def word_tokenizer(size: int = VOCAB, first: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with `size` ids: three special ones, then those of `first` and of `words()`.
    Inputs end with EOS."""
    vocabulary = {"<pad>": PAD, "</s>": EOS, "<unk>": UNK}
    for word in itertools.islice(itertools.chain(first, words()), size - len(vocabulary)):
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def words() -> itertools.chain[str]:
    """The words ba, be, … zu, baba, babe, …"""
    syllables = [a + b for a, b in itertools.product("bdfgklmnprstvz", "aeiou")]
    return itertools.chain(syllables, map("".join, itertools.product(syllables, repeat=2)))


def decoding(**options: Any) -> Decoding:
    """Greedy decoding of up to 24 tokens, ended by EOS, with other `options` on top."""
    defaults: dict[str, Any] = {
        "max_tokens": 24, "min_tokens": 0, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
        "repetition_penalty": 1.0, "seed": 0, "stop_ids": frozenset({EOS}), "eos_ids": frozenset({EOS}),
        "logprobs": None,
    }  # fmt: skip
    return Decoding(**{**defaults, **options})


def load_reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint in transformers, in eval mode."""
    config = json.loads((folder / "config.json").read_text())
    kind = AutoModelForSeq2SeqLM if config.get("is_encoder_decoder") else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=dtype).eval()


@torch.no_grad()
def reference_greedy(
    model: Any, prompts: Sequence[Sequence[int]], max_tokens: int
) -> tuple[list[list[int]], list[float]]:
    """transformers' greedy outputs (start token left out, EOS included), and how clear each was: the
    smallest lead of a token's logit over the second's, in standard deviations of the logits.

    The prompts go in one padded batch; padding is masked exactly, rounding differs in the last bits.
    """
    decoder_only = not model.config.is_encoder_decoder
    longest = max(map(len, prompts))
    padding = [[0] * (longest - len(prompt)) for prompt in prompts]

    def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
        both = zip(padding, rows, strict=True)
        return torch.tensor([[*pad, *row] if decoder_only else [*row, *pad] for pad, row in both])

    # use_cache: transformers 5.23 sizes the cache by the encoder and breaks on a deeper decoder.
    out = model.generate(
        input_ids=padded(prompts),
        attention_mask=padded([[1] * len(prompt) for prompt in prompts]),
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
    for row, lead in zip(out.sequences[:, longest if decoder_only else 1 :].tolist(), leads, strict=True):
        end = row.index(EOS) + 1 if EOS in row else len(row)
        outputs.append(row[:end])
        clear.append(float(lead[:end].min()))
    return outputs, clear
