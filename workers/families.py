"""The families table: Hugging Face config → `ModelSpec`, and our weight names → theirs.

To add a family, add an entry; CONTRIBUTING.md walks through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tandem.errors import ModelLoadError
from tandem.workers.spec import Activation, ModelSpec, RelativeBias, StackSpec

Config = Mapping[str, Any]  # config.json
# Our name of a weight → the names it may have in the checkpoint: the first that is there is read.
# The others, where present too, are tied copies.
WeightNames = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Family:
    spec: Callable[[Config], ModelSpec]
    names: Callable[[ModelSpec], WeightNames]
    # Weights that occur in the wild, are never read, and are passed over without complaint.
    unused: frozenset[str] = frozenset()


# -- T5: original, v1.1, Flan, ByT5; mT5; UMT5


def _t5_spec(
    family: str, scaled: Callable[[Config], bool], bias_per_layer: bool = False
) -> Callable[[Config], ModelSpec]:
    def spec(config: Config) -> ModelSpec:
        projection = str(config.get("feed_forward_proj", "relu"))
        gate, _, name = projection.rpartition("-")
        activations: dict[str, Activation] = {"relu": "relu", "gelu_new": "gelu_new", "gelu": "gelu_new"}
        # "gated-gelu" has always meant the tanh approximation in T5; a bare "gelu" is the exact one.
        if gate not in ("", "gated") or name not in activations or (name == "gelu" and not gate):
            raise ModelLoadError(f"unsupported activation {projection!r}", field="feed_forward_proj")

        def stack(layers: int) -> StackSpec:
            return StackSpec(
                layers=layers,
                d_model=config["d_model"],
                heads=config["num_heads"],
                head_dim=config["d_kv"],
                d_ff=config["d_ff"],
                activation=activations[name],
                gated=bool(gate),
                norm_eps=config.get("layer_norm_epsilon", 1e-6),
                attention_scale=1.0,
                relative_bias=RelativeBias(
                    buckets=config.get("relative_attention_num_buckets", 32),
                    max_distance=config.get("relative_attention_max_distance", 128),
                    per_layer=bias_per_layer,
                ),
            )

        eos = config.get("eos_token_id", 1)
        pad = config.get("pad_token_id", 0)
        start = config.get("decoder_start_token_id")
        return ModelSpec(
            family=family,
            encoder=stack(config["num_layers"]),
            decoder=stack(config.get("num_decoder_layers") or config["num_layers"]),
            vocab_size=config["vocab_size"],
            logit_scale=config["d_model"] ** -0.5 if scaled(config) else 1.0,
            decoder_start_id=pad if start is None else start,
            pad_id=pad,
            eos_ids=tuple(eos) if isinstance(eos, list) else (eos,),
        )

    return spec


def _t5_names(spec: ModelSpec) -> WeightNames:
    names: WeightNames = {
        "encoder.embedding": ("encoder.embed_tokens.weight", "shared.weight"),
        "decoder.embedding": ("decoder.embed_tokens.weight", "shared.weight"),
        "decoder.output": ("lm_head.weight", "shared.weight", "decoder.embed_tokens.weight"),
    }
    for side, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        names[f"{side}.final_norm"] = (f"{side}.final_layer_norm.weight",)
        for i in range(stack.layers):
            ours, theirs = f"{side}.layers.{i}", f"{side}.block.{i}.layer"
            for part in "qkvo":
                names[f"{ours}.self_attention.{part}"] = (f"{theirs}.0.SelfAttention.{part}.weight",)
                if side == "decoder":
                    names[f"{ours}.cross_attention.{part}"] = (f"{theirs}.1.EncDecAttention.{part}.weight",)
            if i == 0 or stack.relative_bias.per_layer:
                names[f"{ours}.self_attention.bias"] = (
                    f"{theirs}.0.SelfAttention.relative_attention_bias.weight",
                )
            names[f"{ours}.self_attention.norm"] = (f"{theirs}.0.layer_norm.weight",)
            if side == "decoder":
                names[f"{ours}.cross_attention.norm"] = (f"{theirs}.1.layer_norm.weight",)
            last = 2 if side == "decoder" else 1
            names[f"{ours}.feed_forward.norm"] = (f"{theirs}.{last}.layer_norm.weight",)
            for our_part, their_part in (
                (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo"))
                if stack.gated
                else (("up", "wi"), ("down", "wo"))
            ):
                names[f"{ours}.feed_forward.{our_part}"] = (
                    f"{theirs}.{last}.DenseReluDense.{their_part}.weight",
                )
    return names


# The original T5 checkpoints hold a bias table for cross-attention, which has none.
_T5_UNUSED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})


def _t5_scaled(config: Config) -> bool:
    # transformers 5 writes the flag itself; before, untied embeddings implied unscaled logits.
    flag = config.get("scale_decoder_outputs")
    return _tied(config) if flag is None else bool(flag)


def _tied(config: Config) -> bool:
    return bool(config.get("tie_word_embeddings", True))


def _never(_: Config) -> bool:
    return False


FAMILIES: dict[str, Family] = {
    "t5": Family(_t5_spec("t5", scaled=_t5_scaled), _t5_names, _T5_UNUSED),
    "mt5": Family(_t5_spec("mt5", scaled=_never), _t5_names, _T5_UNUSED),
    "umt5": Family(
        _t5_spec(
            "umt5",
            scaled=_tied,
            bias_per_layer=True,
        ),
        _t5_names,
        _T5_UNUSED,
    ),
}


def family_of(config: Config) -> Family:
    """The table's entry for a config.json. Raises ModelLoadError, listing what is served."""
    kind = config.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        raise ModelLoadError(
            f"model_type {kind!r} is not served; served are {', '.join(sorted(FAMILIES))}", field="model"
        )
    return family


def spec_of(config: Config) -> ModelSpec:
    """The spec of a config.json. Raises ModelLoadError, naming a missing key."""
    try:
        return family_of(config).spec(config)
    except KeyError as error:
        raise ModelLoadError(f"config.json lacks {error.args[0]!r}", field="model") from None
