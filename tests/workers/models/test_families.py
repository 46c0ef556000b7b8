"""The families table, against transformers' own reading of the same config files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import VARIANTS
from safetensors import safe_open
from transformers import AutoConfig, MT5Config, PreTrainedConfig, T5Config, UMT5Config
from transformers.activations import ACT2FN

from tandem.errors import ModelLoadError
from tandem.workers.models.families import FAMILIES, Part, family_of, spec_of
from tandem.workers.models.spec import Rotary, Window

# As published, without what nobody reads.
T5_SMALL = {
    "model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_heads": 8, "num_layers": 6,
    "vocab_size": 32128, "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-06,
    "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
FLAN_T5_BASE = {
    "model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12, "num_layers": 12,
    "num_decoder_layers": 12, "vocab_size": 32128, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-06, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False, "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
BYT5_SMALL = {
    **FLAN_T5_BASE, "d_model": 1472, "d_ff": 3584, "num_heads": 6, "num_decoder_layers": 4,
    "vocab_size": 384,
}  # fmt: skip
UL2 = {
    **FLAN_T5_BASE, "d_model": 4096, "d_kv": 256, "d_ff": 16384, "num_heads": 16, "num_layers": 32,
    "num_decoder_layers": 32, "feed_forward_proj": "gated-silu",
}  # fmt: skip
MT5_SMALL = {
    **FLAN_T5_BASE, "model_type": "mt5", "d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8,
    "num_decoder_layers": 8, "vocab_size": 250112,
}  # fmt: skip
LONG_T5 = {**FLAN_T5_BASE, "model_type": "longt5", "local_radius": 127, "encoder_attention_type": "local"}
UMT5_SMALL = {**MT5_SMALL, "model_type": "umt5", "vocab_size": 256384}


# Positions, special ids, activation and scale are the point: each family's are its own.
BART_LARGE_CNN = {
    "model_type": "bart", "vocab_size": 50264, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
    "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096, "activation_function": "gelu", "max_position_embeddings": 1024,
    "scale_embedding": False, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "decoder_start_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2,
}  # fmt: skip
DISTILBART = {**BART_LARGE_CNN, "decoder_layers": 6}
MBART_CC25 = {
    **{key: value for key, value in BART_LARGE_CNN.items() if "token_id" not in key},
    "model_type": "mbart", "vocab_size": 250027, "scale_embedding": True,
}  # fmt: skip
MBART_50 = {**MBART_CC25, "vocab_size": 250054, "decoder_start_token_id": 2}
BLENDERBOT_3B = {
    **BART_LARGE_CNN, "model_type": "blenderbot", "vocab_size": 8008, "d_model": 2560, "encoder_layers": 2,
    "decoder_layers": 24, "encoder_attention_heads": 32, "decoder_attention_heads": 32,
    "encoder_ffn_dim": 10240, "decoder_ffn_dim": 10240, "max_position_embeddings": 128,
    "scale_embedding": True, "pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1,
    "forced_bos_token_id": None,
}  # fmt: skip
PEGASUS_XSUM = {
    **BART_LARGE_CNN, "model_type": "pegasus", "vocab_size": 96103, "encoder_layers": 16,
    "decoder_layers": 16, "activation_function": "relu", "max_position_embeddings": 512,
    "scale_embedding": True, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    "forced_bos_token_id": None, "forced_eos_token_id": 1,
}  # fmt: skip
OPUS_MT_EN_DE = {
    **BART_LARGE_CNN, "model_type": "marian", "vocab_size": 58101, "d_model": 512, "encoder_layers": 6,
    "decoder_layers": 6, "encoder_attention_heads": 8, "decoder_attention_heads": 8,
    "encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048, "activation_function": "swish",
    "max_position_embeddings": 512, "scale_embedding": True, "pad_token_id": 58100, "eos_token_id": 0,
    "decoder_start_token_id": 58100, "forced_bos_token_id": None, "forced_eos_token_id": 0,
}  # fmt: skip
NLLB_600M = {
    **BART_LARGE_CNN, "model_type": "m2m_100", "vocab_size": 256206, "activation_function": "relu",
    "scale_embedding": True, "forced_bos_token_id": None,
}  # fmt: skip
del NLLB_600M["forced_eos_token_id"]


def hf_config(values: dict[str, Any]) -> PreTrainedConfig:
    kinds = {"t5": T5Config, "mt5": MT5Config, "umt5": UMT5Config}
    return kinds[values["model_type"]](**values)


@pytest.mark.parametrize(
    "values",
    [T5_SMALL, FLAN_T5_BASE, UL2, BYT5_SMALL, MT5_SMALL, UMT5_SMALL],
    ids=lambda v: f"{v['model_type']}-{v['d_model']}",
)
def test_published_configs(values: dict[str, Any]) -> None:
    spec, config = spec_of(values), hf_config(values)
    assert spec.family == config.model_type
    assert (spec.encoder.layers, spec.decoder.layers) == (config.num_layers, config.num_decoder_layers)
    for stack in (spec.encoder, spec.decoder):
        assert (stack.d_model, stack.heads, stack.head_dim) == (config.d_model, config.num_heads, config.d_kv)
        assert stack.d_ff == config.d_ff
        assert (stack.activation, stack.gated) == (config.dense_act_fn, config.is_gated_act)
        assert stack.norm_eps == config.layer_norm_epsilon
        assert stack.attention_scale == 1.0
        assert stack.relative_bias.buckets == config.relative_attention_num_buckets
        assert stack.relative_bias.max_distance == config.relative_attention_max_distance
        assert stack.relative_bias.per_layer == (config.model_type == "umt5")
    assert spec.vocab_size == config.vocab_size
    assert (spec.pad_id, spec.eos_ids) == (config.pad_token_id, (config.eos_token_id,))
    assert spec.decoder_start_id == 0


@pytest.mark.parametrize(
    "values",
    [BART_LARGE_CNN, DISTILBART, MBART_CC25, MBART_50, BLENDERBOT_3B, PEGASUS_XSUM, OPUS_MT_EN_DE, NLLB_600M],
    ids=lambda v: f"{v['model_type']}-{v['vocab_size']}-{v['decoder_layers']}",
)
def test_published_configs_of_the_bart_like(values: dict[str, Any]) -> None:
    spec, config = spec_of(values), AutoConfig.for_model(**values)
    assert spec.family == config.model_type
    for side, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        heads = getattr(config, f"{side}_attention_heads")
        assert stack.layers == getattr(config, f"{side}_layers")
        assert (stack.heads, stack.head_dim) == (heads, config.d_model // heads)
        assert (stack.d_model, stack.d_ff) == (config.d_model, getattr(config, f"{side}_ffn_dim"))
        assert ACT2FN[stack.activation](torch.ones(1)) == ACT2FN[config.activation_function](torch.ones(1))
        assert stack.embedding_scale == (config.d_model**0.5 if config.scale_embedding else 1.0)
        assert stack.max_positions == config.max_position_embeddings
        assert stack.vocab_size == config.vocab_size
    assert (spec.pad_id, spec.eos_ids) == (config.pad_token_id, (config.eos_token_id,))
    start = config.decoder_start_token_id
    assert spec.decoder_start_id == (config.bos_token_id if start is None else start)


BERT = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu", "pad_token_id": 0,
    "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip
ROBERTA = {
    **BERT, "model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "bos_token_id": 0,
    "pad_token_id": 1, "eos_token_id": 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "n_positions": 1024, "bos_token_id": 50256, "eos_token_id": 50256, "activation_function": "gelu_new",
}  # fmt: skip
BERT2BERT = {
    "model_type": "encoder-decoder", "encoder": BERT, "decoder": BERT, "decoder_start_token_id": 101,
    "eos_token_id": 102, "pad_token_id": 0,
}  # fmt: skip


def test_encoder_decoder_halves() -> None:
    spec = spec_of(BERT2BERT)
    assert (spec.decoder_start_id, spec.eos_ids, spec.pad_id) == (101, (102,), 0)
    assert spec.encoder == spec.decoder
    assert (spec.encoder.max_positions, spec.encoder.token_types, spec.enc_to_dec_proj) == (512, 2, False)

    # What the whole's config leaves out is the decoder's.
    whole = {"model_type": "encoder-decoder", "encoder": ROBERTA, "decoder": {**ROBERTA, "hidden_size": 384}}
    spec = spec_of(whole)
    assert (spec.decoder_start_id, spec.eos_ids, spec.pad_id) == (0, (2,), 1)
    assert spec.encoder.max_positions == 512
    assert spec.enc_to_dec_proj
    spec = spec_of({**BERT2BERT, "decoder": GPT2})
    assert (spec.decoder.post_norm, spec.decoder.max_positions, spec.decoder.d_ff) == (False, 1024, 3072)
    assert (
        spec_of({"model_type": "encoder-decoder", "encoder": BERT, "decoder": BERT}).decoder_start_id is None
    )


PHI_2 = {
    "model_type": "phi", "vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "gelu_new",
    "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None,
    "partial_rotary_factor": 0.4, "qk_layernorm": False, "bos_token_id": 50256, "eos_token_id": 50256,
    "pad_token_id": None, "num_key_value_heads": 32,
}  # fmt: skip


def test_decoders_alone() -> None:
    for values in (GPT2, PHI_2):
        spec = spec_of(values)
        assert spec.encoder is None
        assert (spec.decoder_start_id, spec.pad_id, spec.eos_ids) == (None, 50256, (50256,))
    assert spec.decoder.rotary == Rotary(dimensions=32, base=10000.0)
    assert spec.decoder.parallel_residual
    new = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    assert spec_of({**PHI_2, "rope_parameters": new}).decoder.rotary == Rotary(dimensions=40, base=5e5)


GEMMA_2B = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096, "max_position_embeddings": 8192,
    "rope_theta": 10000.0, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
T5GEMMA_2B = {"model_type": "t5gemma", "encoder": GEMMA_2B, "decoder": GEMMA_2B}
GEMMA3_4B = {
    **GEMMA_2B, "sliding_window": 1024, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "max_position_embeddings": 131072, "sliding_window_pattern": 6,
}  # fmt: skip
T5GEMMA2_4B = {"model_type": "t5gemma2", "encoder": {"text_config": GEMMA3_4B}, "decoder": GEMMA3_4B}


def test_t5gemma() -> None:
    """As older files say it; those of transformers 5 are in the parity tests."""
    spec = spec_of(T5GEMMA_2B)
    assert (spec.decoder_start_id, spec.eos_ids, spec.pad_id, spec.logit_softcap) == (2, (1,), 0, 30.0)
    assert spec.encoder is not None
    for stack, window in ((spec.encoder, Window(4096, 4096)), (spec.decoder, Window(4095, 0))):
        assert stack.windows == (window, None) * 13
        assert (stack.heads, stack.shared_heads, stack.head_dim, stack.softcap) == (8, 4, 256, 50.0)
        assert (stack.attention_scale, stack.embedding_scale) == (1 / 16, 48.0)
        assert stack.rotary == Rotary(256, 10000.0)
        assert not stack.merged_attention

    spec = spec_of(T5GEMMA2_4B)
    assert spec.encoder is not None
    for stack, window in ((spec.encoder, Window(511, 512)), (spec.decoder, Window(1023, 0))):
        assert stack.windows[:7] == (*[window] * 5, None, window)
        assert (stack.rotary, stack.window_rotary) == (Rotary(256, 1e6, factor=8.0), Rotary(256, 1e4))
        assert stack.qk_norm
    assert (spec.encoder.merged_attention, spec.decoder.merged_attention, spec.logit_softcap) == (
        False,
        True,
        None,
    )


@pytest.mark.parametrize(
    ("values", "changed", "complaint", "field"),
    [
        (
            LONG_T5,
            {"encoder_attention_type": "global"},
            "there are local, transient-global",
            "encoder_attention_type",
        ),
        (T5GEMMA_2B, {"decoder": {**GEMMA_2B, "attention_bias": True}}, "not supported", "attention_bias"),
        (T5GEMMA_2B, {"decoder": {**GEMMA_2B, "layer_types": ["full"]}}, "of 26 layers", "layer_types"),
        (T5GEMMA2_4B, {"decoder": GEMMA_2B}, "not supported", "attn_logit_softcapping"),
        (
            T5GEMMA_2B,
            {"decoder": {**GEMMA_2B, "rope_scaling": {"rope_type": "yarn"}}},
            "'yarn' is not supported",
            "rope_parameters",
        ),
        (PHI_2, {"num_key_value_heads": 8}, "must be num_attention_heads", "num_key_value_heads"),
        (PHI_2, {"qk_layernorm": True}, "not supported", "qk_layernorm"),
        (PHI_2, {"rope_scaling": {"type": "linear"}}, "not supported", "rope_scaling"),
        (PHI_2, {"rope_parameters": {"rope_type": "yarn"}}, "not supported", "rope_scaling"),
        (BERT2BERT, {"encoder": GPT2}, "'gpt2' is not served as encoder; served are bert,", "encoder"),
        (BERT2BERT, {"decoder": T5_SMALL}, "'t5' is not served as decoder.* gpt2", "decoder"),
        (
            BERT2BERT,
            {"encoder": {**BERT, "position_embedding_type": "relative_key"}},
            "only absolute",
            "position_embedding_type",
        ),
        (
            BERT2BERT,
            {"decoder": {**GPT2, "scale_attn_by_inverse_layer_idx": True}},
            "not supported",
            "scale_attn_by_inverse_layer_idx",
        ),
        (
            BERT2BERT,
            {"decoder": {**BERT, "cross_attention_hidden_size": 7}},
            "must be the encoder's width, 768, got 7",
            "cross_attention_hidden_size",
        ),
        (
            BERT2BERT,
            {"decoder": {**BERT, "hidden_size": 240, "cross_attention_hidden_size": 768}},
            "a decoder of model_type 'bert' reads its own width, 240, got 768",
            "cross_attention_hidden_size",
        ),
        (BART_LARGE_CNN, {"encoder_attention_heads": 7}, "7 heads do not divide", "encoder_attention_heads"),
        (BART_LARGE_CNN, {"activation_function": "tanh"}, "unsupported activation", "activation_function"),
        (BART_LARGE_CNN, {"eos_token_id": "2"}, "must be a token id", "eos_token_id"),
        (BART_LARGE_CNN, {"pad_token_id": 1.5}, "must be a token id", "pad_token_id"),
    ],
)
def test_what_a_config_must_not_say(
    values: dict[str, Any], changed: dict[str, Any], complaint: str, field: str
) -> None:
    with pytest.raises(ModelLoadError, match=complaint) as caught:
        spec_of({**values, **changed})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("values", "scaled"),
    [
        (T5_SMALL, True),
        (FLAN_T5_BASE, False),
        (BYT5_SMALL, False),
        (MT5_SMALL, False),
        # As it was trained. transformers 5 takes umt5 for tied, and scales.
        (UMT5_SMALL, False),
        ({**UMT5_SMALL, "tie_word_embeddings": True}, True),
        # As transformers 5 writes an untied one.
        ({**FLAN_T5_BASE, "tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({**T5_SMALL, "tie_word_embeddings": True, "scale_decoder_outputs": True}, True),
    ],
)
def test_logits_are_scaled_where_the_output_was_tied(values: dict[str, Any], scaled: bool) -> None:
    assert spec_of(values).logit_scale == (values["d_model"] ** -0.5 if scaled else 1.0)
    if values["model_type"] == "t5":
        assert hf_config(values).scale_decoder_outputs == scaled


def test_longt5s_encoder_sees_a_window() -> None:
    spec = spec_of(LONG_T5)
    assert spec.encoder is not None
    assert spec.encoder.windows == (Window(127, 127),) * 12
    assert (spec.decoder.windows, spec.encoder.summary_block) == ((), None)
    spec = spec_of({**LONG_T5, "encoder_attention_type": "transient-global"})
    assert spec.encoder is not None
    assert (spec.encoder.summary_block, spec.decoder.summary_block) == (16, None)


def test_what_a_config_leaves_out_is_t5s_default() -> None:
    required: dict[str, Any] = {
        key: T5_SMALL[key] for key in
        ("model_type", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")
    }  # fmt: skip
    spec = spec_of({**required, "num_decoder_layers": None})
    config = T5Config(**required)
    assert spec.decoder == spec.encoder
    assert spec.encoder.activation == config.dense_act_fn == "relu"
    assert spec.encoder.norm_eps == config.layer_norm_epsilon
    assert spec.encoder.relative_bias.max_distance == config.relative_attention_max_distance
    assert (spec.decoder_start_id, spec.pad_id, spec.eos_ids) == (0, 0, (1,))


def test_special_ids() -> None:
    spec = spec_of({**T5_SMALL, "eos_token_id": [1, 7], "pad_token_id": 5, "decoder_start_token_id": None})
    assert (spec.eos_ids, spec.pad_id, spec.decoder_start_id) == ((1, 7), 5, 5)


@pytest.mark.parametrize("key", ["d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ModelLoadError, match=f"config.json lacks '{key}'"):
        spec_of({k: v for k, v in T5_SMALL.items() if k != key})


@pytest.mark.parametrize("projection", ["tanh", "gated-tanh", "swish-relu", ""])
def test_an_unknown_activation_is_named(projection: str) -> None:
    with pytest.raises(ModelLoadError, match="unsupported activation") as caught:
        spec_of({**T5_SMALL, "feed_forward_proj": projection})
    assert caught.value.field == "feed_forward_proj"
    assert repr(projection) in str(caught.value)


@pytest.mark.parametrize("kind", ["llama", None])
def test_an_unknown_family_is_named_with_those_that_are_served(kind: str | None) -> None:
    with pytest.raises(
        ModelLoadError, match=f"{kind!r} is not served; served are .*mt5, .*t5, t5gemma, t5gemma2, umt5"
    ):
        spec_of({**T5_SMALL, "model_type": kind})


@pytest.mark.parametrize("kind", ["prophetnet", "xlm-prophetnet"])
def test_prophetnet_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ModelLoadError, match=f"{kind!r} is not served: .*several streams at once"):
        spec_of({"model_type": kind})


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_cover_a_checkpoint_exactly(variant: str, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(variant)
    values = json.loads((folder / "config.json").read_text())
    names = family_of(values).names(values, spec_of(values))
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    plain = [[part.name if isinstance(part, Part) else part for part in parts] for parts in names.values()]
    # None among the names: the weight may be absent.
    first = {next((name for name in theirs if name in stored or name is None), "absent") for theirs in plain}
    first.discard(None)
    assert first <= stored
    assert values["model_type"] in FAMILIES
    # What is left are embeddings that the stacks have of their own, a pooler, and what sees images.
    left = ("shared", "pooler", "vision_tower", "multi_modal", "eoi_embedding")
    assert all(any(part in name for part in left) for name in stored - first)
