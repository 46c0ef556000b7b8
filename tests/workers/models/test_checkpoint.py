"""Weights: complete both ways, and each rank gets its slice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import EOS, PAD, make_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5ForConditionalGeneration

from tandem.errors import ModelLoadError
from tandem.workers.distributed import Group
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.families import FAMILIES, Config, Part, WeightNames
from tandem.workers.models.layers import Placement, WeightSlot
from tandem.workers.models.model_folder import INDEX, read_json
from tandem.workers.models.spec import ModelSpec
from tandem.workers.models.stacks import DecoderStack, EncoderStack, load_decoder

CPU = torch.device("cpu")


def open_checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder)


def slots(
    folder: Path, group: Group | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, WeightSlot]:
    """All loaded weights, by our names."""
    opened, place = open_checkpoint(folder), Placement(CPU, dtype, group or Group())
    assert opened.spec.encoder is not None
    tied = opened.tied("decoder.output", "decoder.embedding")
    parts = EncoderStack(opened.spec.encoder, place), DecoderStack(opened.spec, tied, place)
    found = {slot.name: slot for part in parts for slot in part.slots()}
    opened.load(found.values())
    return found


def decoder_of(folder: Path) -> DecoderStack:
    return load_decoder(open_checkpoint(folder), Placement(CPU, torch.float32, Group()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "flan")


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


# -- complete both ways


def test_missing_weights_are_named(folder: Path) -> None:
    names = ["decoder.block.1.layer.1.EncDecAttention.q.weight", "encoder.final_layer_norm.weight"]
    edit(folder, lambda weights: [weights.pop(name) for name in names])
    with pytest.raises(ModelLoadError, match=r"lacks 2 weights") as caught:
        open_checkpoint(folder)
    assert all(name in str(caught.value) for name in names)


def test_unused_weights_are_named(folder: Path) -> None:
    edit(folder, lambda weights: weights.update({"encoder.block.9.layer.0.layer_norm.weight": torch.ones(4)}))
    with pytest.raises(ModelLoadError, match=r"1 weights .* encoder\.block\.9\.layer\.0\.layer_norm\.weight"):
        open_checkpoint(folder)


def test_a_checkpoint_deeper_than_its_config_is_refused(folder: Path) -> None:
    values = read_json(folder, "config.json")
    (folder / "config.json").write_text(json.dumps({**values, "num_decoder_layers": 1}))
    with pytest.raises(ModelLoadError, match=r"the model does not: decoder\.block\.1\..* …"):
        open_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps({**values, "num_decoder_layers": 4}))
    with pytest.raises(ModelLoadError, match=r"lacks \d+ weights: decoder\.block\.2\..* …"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "key", "value", "shapes"),
    [
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", "d_ff", 48, (r"\[64, 32\]", r"\[48, 32\]")),
        ("shared.weight", "vocab_size", 100, (r"\[128, 32\]", r"\[100, 32\]")),
        (
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "relative_attention_num_buckets",
            16,
            (r"\[32, 4\]", r"\[16, 4\]"),
        ),
    ],
)
def test_a_misshapen_weight_names_both_shapes(
    name: str, key: str, value: int, shapes: tuple[str, str], folder: Path
) -> None:
    values = read_json(folder, "config.json")
    (folder / "config.json").write_text(json.dumps({**values, key: value}))
    with pytest.raises(
        ModelLoadError, match=f"{name} has shape {shapes[0]}, the config asks for {shapes[1]}"
    ):
        slots(folder)


# -- files


def test_sharded_checkpoints_load_the_same(tmp_path: Path) -> None:
    whole = make_checkpoint(tmp_path / "whole", "flan")
    sharded = make_checkpoint(tmp_path / "sharded", "flan", max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    assert not (sharded / "model.safetensors").exists()
    for one, other in zip(slots(whole).values(), slots(sharded).values(), strict=True):
        assert torch.equal(one.into, other.into)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "sharded", "flan", max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelLoadError, match=f"lacks {shard.name}"):
        open_checkpoint(folder)


def test_a_stale_index_does_not_count(folder: Path) -> None:
    """transformers takes the single file first, too."""
    before = slots(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"shared.weight": "model-1.safetensors"}}))
    for one, other in zip(before.values(), slots(folder).values(), strict=True):
        assert torch.equal(one.into, other.into)


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ({"weight_map": {"shared.weight": "../model.safetensors"}}, "outside its folder"),
        ({"weight_map": {"shared.weight": 3}}, "no weight_map"),
        ({"weight_map": []}, "no weight_map"),
        ({"metadata": {}}, "no weight_map"),
    ],
)
def test_a_malformed_index_is_refused(folder: Path, index: dict[str, object], complaint: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=complaint):
        open_checkpoint(folder)


def test_pickles_are_not_read_but_hinted_at(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"lacks model\.safetensors$"):
        open_checkpoint(folder)
    (folder / "tf_model.h5").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"of other names or formats, which are not read: tf_model\.h5"):
        open_checkpoint(folder)
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    hint = r"a pickle and not read: convert it .*`T5ForConditionalGeneration\.from_pretrained\('.*/model'\)"
    with pytest.raises(ModelLoadError, match=hint):
        open_checkpoint(folder)


def test_the_hint_about_pickles_is_right(folder: Path, tmp_path: Path) -> None:
    theirs = T5ForConditionalGeneration.from_pretrained(folder)
    before = slots(folder)
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    T5ForConditionalGeneration.from_pretrained(folder).save_pretrained(tmp_path / "converted")
    for one, other in zip(before.values(), slots(tmp_path / "converted").values(), strict=True):
        assert torch.equal(one.into, other.into)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\xff" * 99, "cannot be read: "),
        (b"", "cannot be read: "),
    ],
)
def test_weights_that_are_damaged_are_named(folder: Path, content: bytes, complaint: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelLoadError, match=rf"model\.safetensors .*{complaint}"):
        open_checkpoint(folder)


# -- tied weights


def test_tied_copies_may_be_there_or_not(tmp_path: Path) -> None:
    """The original T5 files hold the embedding up to four times, and a bias that cross-attention has not."""
    folder = make_checkpoint(tmp_path / "model", "t5")
    before = {name: slot.into.clone() for name, slot in slots(folder).items()}
    assert "decoder.output" not in before
    shared = load_file(folder / "model.safetensors")["shared.weight"]

    def add_copies(weights: dict[str, torch.Tensor]) -> None:
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            weights[name] = shared.clone()
        weights["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(32, 4)

    edit(folder, add_copies)
    after = {name: slot.into for name, slot in slots(folder).items()}
    assert torch.equal(after.pop("decoder.output"), shared)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_embeddings_without_a_shared_copy(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "t5")

    def rename(weights: dict[str, torch.Tensor]) -> None:
        shared = weights.pop("shared.weight")
        weights["encoder.embed_tokens.weight"] = shared
        weights["decoder.embed_tokens.weight"] = shared + 1

    edit(folder, rename)
    loaded = slots(folder)
    assert torch.equal(loaded["decoder.embedding"].into, loaded["encoder.embedding"].into + 1)
    assert "decoder.output" not in loaded  # tied to the decoder's embedding


def test_an_untied_output_is_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    loaded = slots(folder)
    assert not torch.equal(weights["lm_head.weight"], weights["shared.weight"])
    assert torch.equal(loaded["decoder.output"].into, weights["lm_head.weight"])
    assert torch.equal(loaded["decoder.embedding"].into, weights["shared.weight"])
    assert {PAD, EOS} == {0, 1}


@pytest.mark.parametrize("kept", ["encoder.", "decoder.roberta."])
def test_an_encoder_decoder_may_be_one_stack(kept: str, tmp_path: Path) -> None:
    """`tie_encoder_decoder`, as in roberta_shared: the file has one copy, under either name."""
    same = {"num_hidden_layers": 2, "num_attention_heads": 2}
    folder = make_checkpoint(
        tmp_path / "model", "roberta2roberta", encoder_options=same, decoder_options=same
    )
    values = read_json(folder, "config.json")
    (folder / "config.json").write_text(json.dumps({**values, "tie_encoder_decoder": True}))
    other = {"encoder.": "decoder.roberta.", "decoder.roberta.": "encoder."}[kept]
    weights = load_file(folder / "model.safetensors")
    edit(
        folder, lambda w: [w.pop(name) for name in weights if name.startswith(other) and "cross" not in name]
    )
    loaded = slots(folder)
    shared = [name for name in loaded if name.startswith("encoder.")]
    assert len(shared) > 30
    for name in shared:
        assert torch.equal(loaded[name].into, loaded[name.replace("encoder", "decoder")].into)
    theirs = f"{kept}encoder.layer.1.intermediate.dense.weight"
    assert torch.equal(loaded["decoder.layers.1.feed_forward.up"].into, weights[theirs])


# -- other layouts


@pytest.mark.parametrize("size", [1, 2])
def test_parts_of_weights_in_another_layout(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GPT-2's q, k and v: one [inputs, outputs] weight."""
    folder = make_checkpoint(tmp_path / "model", "bart")
    stored = {"fused": torch.randn(6, 12), "fused.bias": torch.randn(12), "square": torch.randn(4, 8)}
    save_file(stored, folder / "model.safetensors")

    def names(*_: object) -> WeightNames:
        return {
            **{f"{n}": (Part("fused", transposed=True, index=n, of=3),) for n in range(3)},
            **{f"{n}.bias": (Part("fused.bias", index=n, of=3),) for n in range(3)},
            "square": (Part("square", transposed=True),),
            "absent": ("nowhere", None),
        }

    monkeypatch.setitem(FAMILIES, "bart", replace(FAMILIES["bart"], names=names))
    opened = open_checkpoint(folder)
    whole = stored["fused"].T.split(4)
    for rank in range(size):
        share = 4 // size
        here = slice(rank * share, (rank + 1) * share)
        for n in range(3):
            weight, bias = torch.empty(share, 6), torch.empty(share)
            opened.load([WeightSlot(f"{n}", weight, (4, 6), dim=0, start=here.start)])
            opened.load([WeightSlot(f"{n}.bias", bias, (4,), dim=0, start=here.start)])
            assert torch.equal(weight, whole[n][here])
            assert torch.equal(bias, stored["fused.bias"].split(4)[n][here])
        square = torch.empty(8, share)
        opened.load([WeightSlot("square", square, (8, 4), dim=1, start=here.start)])
        assert torch.equal(square, stored["square"].T[:, here])
    absent = torch.ones(3)
    opened.load([WeightSlot("absent", absent, (3,))])
    assert not absent.any()
    with pytest.raises(ModelLoadError, match=r"fused has shape \[6, 12\], the config asks for \[6, 15\]"):
        opened.load([WeightSlot("0", torch.empty(5, 6), (5, 6))])


@pytest.mark.parametrize("size", [1, 2])
def test_one_bias_of_a_fused_projection_may_be_missing(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Whisper's keys have none where queries and values do: it is zero, in self- and cross-attention."""
    folder = make_checkpoint(tmp_path / "model", "bart")
    family, stored = FAMILIES["bart"], load_file(folder / "model.safetensors")
    edit(folder, lambda weights: [weights.pop(name) for name in stored if name.endswith("k_proj.bias")])

    def names(config: Config, spec: ModelSpec) -> WeightNames:
        found = family.names(config, spec)
        return found | {ours: (None,) for ours in found if ours.endswith("attention.k.bias")}

    monkeypatch.setitem(FAMILIES, "bart", replace(family, names=names))
    opened = open_checkpoint(folder)
    for rank in range(size):
        decoder = DecoderStack(opened.spec, True, Placement(CPU, torch.float32, Group(rank=rank, size=size)))
        for slot in decoder.slots():
            slot.into.fill_(7.0)
        opened.load(decoder.slots())
        assert decoder.cross_kv is not None
        fused = decoder.layers[0][0].qkv, decoder.cross_kv.kv
        for attention, projection in zip(("self_attn", "encoder_attn"), fused, strict=True):
            biases = dict(zip(projection.names, projection.linear.bias.split(projection.shares), strict=True))
            kind = {"self_attn": "self", "encoder_attn": "cross"}[attention]
            for part in "kv":
                name = f"model.decoder.layers.0.{attention}.{part}_proj.bias"
                expected = stored[name].chunk(size)[rank] * (part == "v")
                assert torch.equal(biases[f"decoder.layers.0.{kind}_attention.{part}"], expected)


def test_a_bias_on_the_logits_may_be_missing(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "bart")
    decoder = decoder_of(folder)
    assert decoder.head.bias is not None
    bias = load_file(folder / "model.safetensors")["final_logits_bias"]
    assert torch.equal(decoder.head.bias.weight, bias[0])
    edit(folder, lambda weights: weights.pop("final_logits_bias"))
    assert decoder_of(folder).head.bias is None


def test_bart_saved_without_its_head_and_with_what_older_files_hold(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "marian")
    before = {name: slot.into.clone() for name, slot in slots(folder).items()}

    def age(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.removeprefix("model.")] = weights.pop(name)
        weights["lm_head.weight"] = weights.pop("shared.weight")
        weights["encoder.embed_positions.weight"] = table
        weights["encoder.version"] = torch.tensor([3.0])

    table = torch.randn(160, 32)
    edit(folder, age)
    after = {name: slot.into for name, slot in slots(folder).items()}
    assert torch.equal(after.pop("encoder.positions"), table)
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert after.keys() == before.keys() - {"encoder.positions"}


# -- slices


def joined(parts: Iterable[torch.Tensor], dim: int | None) -> torch.Tensor:
    parts = list(parts)
    if dim is not None:
        return torch.cat(parts, dim=dim)
    assert all(torch.equal(part, parts[0]) for part in parts)
    return parts[0]


@pytest.mark.parametrize(("variant", "size"), [("t5", 2), ("flan", 2), ("flan", 4), ("umt5", 2)])
def test_slices_make_up_the_whole(variant: str, size: int, checkpoint: Callable[..., Path]) -> None:
    whole = slots(checkpoint(variant))
    ranks = [slots(checkpoint(variant), Group(rank=rank, size=size)) for rank in range(size)]
    for name, slot in whole.items():
        parts = [rank[name] for rank in ranks]
        assert torch.equal(joined((part.into for part in parts), slot.dim), slot.into), name
        assert len({part.into.shape for part in parts}) == 1
        assert ("norm" in name) == (slot.dim is None)


def test_slices_are_of_whole_heads(checkpoint: Callable[..., Path]) -> None:
    """Written out for one rank: heads 2 and 3 of 4, of 8 dimensions each."""
    weights = load_file(checkpoint("flan") / "model.safetensors")
    second = slots(checkpoint("flan"), Group(rank=1, size=2))
    block = "decoder.block.1.layer"
    for ours, theirs, index in (
        ("self_attention.q", f"{block}.0.SelfAttention.q.weight", (slice(16, 32), slice(None))),
        ("cross_attention.v", f"{block}.1.EncDecAttention.v.weight", (slice(16, 32), slice(None))),
        ("cross_attention.o", f"{block}.1.EncDecAttention.o.weight", (slice(None), slice(16, 32))),
        ("feed_forward.gate", f"{block}.2.DenseReluDense.wi_0.weight", (slice(32, 64), slice(None))),
        ("feed_forward.down", f"{block}.2.DenseReluDense.wo.weight", (slice(None), slice(32, 64))),
    ):
        assert torch.equal(second[f"decoder.layers.1.{ours}"].into, weights[theirs][index]), ours
    bias = weights["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    assert torch.equal(second["decoder.layers.0.self_attention.bias"].into, bias[:, 2:])


def test_a_vocabulary_need_not_be_divisible(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "flan", vocab_size=129)
    full = load_file(folder / "model.safetensors")["lm_head.weight"]
    groups = [Group(rank=rank, size=2) for rank in range(2)]
    first, second = (slots(folder, group)["decoder.output"].into for group in groups)
    assert (len(first), len(second)) == (65, 64)
    assert torch.equal(torch.cat([first, second]), full)


@pytest.mark.parametrize("size", [3, 8])
def test_heads_that_cannot_be_split_are_refused(size: int, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ModelLoadError, match=f"heads = .* is not divisible by tensor_parallel_size = {size}"):
        slots(checkpoint("flan"), Group(rank=0, size=size))


def test_weights_become_the_dtype_that_is_asked_for(folder: Path) -> None:
    loaded = slots(folder, dtype=torch.bfloat16)
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(loaded["decoder.output"].into, weights["lm_head.weight"].bfloat16())
    # Added to float32 scores.
    assert loaded["decoder.layers.0.self_attention.bias"].into.dtype == torch.float32


@pytest.mark.parametrize(("variant", "ids"), [("t5", [3, 7, EOS]), ("byt5", [101, 100, 35, 101, 120, EOS])])
def test_tokenizers_are_beside_the_weights(
    variant: str, ids: list[int], checkpoint: Callable[..., Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(variant), local_files_only=True)
    assert tokenizer("ba bu").input_ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ba bu"
