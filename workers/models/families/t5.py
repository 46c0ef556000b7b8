"""T5: original, v1.1, Flan, ByT5, UL2; mT5; UMT5; LongT5 with local or transient-global attention."""

from __future__ import annotations

from collections.abc import Callable

from tandem.errors import ModelLoadError
from tandem.workers.models.families.entry import (
    ACTIVATIONS,
    Config,
    Family,
    WeightNames,
    ids,
    sides,
    token_id,
)
from tandem.workers.models.spec import ModelSpec, RelativeBias, StackSpec, Window


def _spec(
    family: str, scaled: Callable[[Config], bool], bias_per_layer: bool = False, local: bool = False
) -> Callable[[Config], ModelSpec]:
    def spec(config: Config) -> ModelSpec:
        projection = str(config.get("feed_forward_proj", "relu"))
        gate, _, name = projection.rpartition("-")
        # "gated-gelu" has always meant the tanh approximation in T5; a bare "gelu" is the exact one.
        act = ACTIVATIONS.get("gelu_new" if projection == "gated-gelu" else name)
        if gate not in ("", "gated") or act is None:
            raise ModelLoadError(f"unsupported activation {projection!r}", field="feed_forward_proj")

        kind = config.get("encoder_attention_type", "local") if local else None
        if kind not in (None, *_ATTENTIONS):
            raise ModelLoadError(
                f"{kind!r} is not supported; there are {', '.join(_ATTENTIONS)}",
                field="encoder_attention_type",
            )
        radius = config.get("local_radius", 127)
        windows = (Window(radius, radius),) * config["num_layers"] if local else ()
        block = config.get("global_block_size", 16) if kind == "transient-global" else None

        def stack(layers: int, windows: tuple[Window, ...] = (), block: int | None = None) -> StackSpec:
            return StackSpec(
                vocab_size=config["vocab_size"],
                layers=layers,
                d_model=config["d_model"],
                heads=config["num_heads"],
                head_dim=config["d_kv"],
                d_ff=config["d_ff"],
                activation=act,
                gated=bool(gate),
                norm="rms",
                norm_eps=config.get("layer_norm_epsilon", 1e-6),
                attention_scale=1.0,
                relative_bias=RelativeBias(
                    buckets=config.get("relative_attention_num_buckets", 32),
                    max_distance=config.get("relative_attention_max_distance", 128),
                    per_layer=bias_per_layer,
                ),
                windows=windows,
                summary_block=block,
            )

        pad = token_id(config, "pad_token_id", 0)
        return ModelSpec(
            family=family,
            encoder=stack(config["num_layers"], windows, block),
            decoder=stack(config.get("num_decoder_layers") or config["num_layers"]),
            logit_scale=config["d_model"] ** -0.5 if scaled(config) else 1.0,
            decoder_start_id=token_id(config, "decoder_start_token_id", pad),
            pad_id=pad,
            eos_ids=ids(config, "eos_token_id", 1),
        )

    return spec


def _names(_: Config, spec: ModelSpec) -> WeightNames:
    names: WeightNames = {
        "encoder.embedding": ("encoder.embed_tokens.weight", "shared.weight"),
        "decoder.embedding": ("decoder.embed_tokens.weight", "shared.weight"),
        "decoder.output": ("lm_head.weight", "shared.weight", "decoder.embed_tokens.weight"),
    }
    for side, stack in sides(spec):
        names[f"{side}.final_norm"] = (f"{side}.final_layer_norm.weight",)
        relative = stack.relative_bias
        assert relative is not None
        attention = "LocalSelfAttention" if stack.windows else "SelfAttention"
        if stack.summary_block is not None:
            attention = "TransientGlobalSelfAttention"
        for i in range(stack.layers):
            ours, theirs = f"{side}.layers.{i}", f"{side}.block.{i}.layer"
            for part in "qkvo":
                names[f"{ours}.self_attention.{part}"] = (f"{theirs}.0.{attention}.{part}.weight",)
                if side == "decoder":
                    names[f"{ours}.cross_attention.{part}"] = (f"{theirs}.1.EncDecAttention.{part}.weight",)
            if i == 0 or relative.per_layer:
                names[f"{ours}.self_attention.bias"] = (
                    f"{theirs}.0.{attention}.relative_attention_bias.weight",
                )
                if stack.summary_block is not None:
                    names[f"{ours}.self_attention.summary_bias"] = (
                        f"{theirs}.0.{attention}.global_relative_attention_bias.weight",
                    )
            if stack.summary_block is not None:
                names[f"{ours}.self_attention.summary_norm"] = (
                    f"{theirs}.0.{attention}.global_input_layer_norm.weight",
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


_ATTENTIONS = ("local", "transient-global")  # LongT5's encoder has one of them

# The original T5 checkpoints hold a bias table for cross-attention, which has none.
_UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def _scaled(config: Config) -> bool:
    # transformers 5 writes the flag; in older files untied embeddings imply unscaled logits.
    flag = config.get("scale_decoder_outputs")
    return bool(config.get("tie_word_embeddings", True) if flag is None else flag)


def _never(_: Config) -> bool:
    return False


FAMILIES = {
    "t5": Family(_spec("t5", scaled=_scaled), _names, _UNUSED),
    "mt5": Family(_spec("mt5", scaled=_never), _names, _UNUSED),
    "longt5": Family(_spec("longt5", scaled=_scaled, local=True), _names, _UNUSED),
    "umt5": Family(_spec("umt5", scaled=_scaled, bias_per_layer=True), _names, _UNUSED),
}
