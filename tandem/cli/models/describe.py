"""All that is known of a model before it runs, as plain values: what `tandem show` shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tandem.errors import ModelLoadError
from tandem.workers.config import EngineConfig
from tandem.workers.models.families import spec_of
from tandem.workers.models.footprint import Footprint
from tandem.workers.models.model_folder import has_weights, read_config, read_json, resolve
from tandem.workers.models.spec import ModelSpec
from tandem.workers.requests.languages.names import LanguageNames
from tandem.workers.requests.media.audio import CONFIG
from tandem.workers.requests.model_info import ModelInfo
from tandem.workers.requests.parameters.defaults import SET_BY
from tandem.workers.requests.parameters.generation_settings import generation_config, own_layers, sound
from tandem.workers.requests.prompts.tokenizer import read_tokenizer
from tandem.workers.requests.speech import Speech, english_name
from tandem.workers.requests.tasks import Tasks

# A default's names in the files, where they are not its own.
_CALLED: Final = {"temperature": ("do_sample", "temperature")} | {
    ours: (name,) for name, ours in SET_BY.items()
}
_BUILT_IN: Final = "Tandem"
# transformers' feature extractor's, where its file says none.
_CHUNK_LENGTH_S: Final = 30
_SAMPLING_RATE: Final = 16_000
_INPUT_TOKENS: Final = 512  # of the inputs to fit in, where the model reads no media
_RANKS: Final = (1, 2, 4, 8)
SLOTS: Final = (1, 16, 64, 256)  # sequences at once, whose K/V are shown


class _Precision(NamedTuple):
    """How a worker may be run, and on what."""

    name: str
    options: dict[str, Any]  # of `EngineConfig`


# int8 is of projections on a CPU.
_PRECISIONS: Final = (
    _Precision("bfloat16", {"device": "cuda", "dtype": "bfloat16"}),
    _Precision("int8", {"device": "cpu", "dtype": "float32", "quantization": "int8"}),
)


def describe(
    model: str,
    sequence: tuple[int | None, int],
    overrides: Mapping[str, Any] | None = None,
    **engine_options: Any,
) -> dict[str, Any]:
    """The model's spec, decoding defaults, tasks, languages and memory, ready for JSON. Its weights need not
    be there.

    Args:
        model: a folder, a Hugging Face hub id, or "quickstart".
        sequence: input and output tokens of the sequences that are fitted into the K/V memory. An input of
            None is as long as an image or a recording, or, where the model reads none, 512 tokens.
        overrides: a server's own decoding defaults, under transformers' names.
        engine_options: fields of `EngineConfig`, such as dtype or kv_cache_gib.

    Raises ModelLoadError for a model that cannot be served, InvalidRequest for an unusable option.
    """
    folder = resolve(model, weights=False)
    spec = spec_of(read_config(folder))
    config = EngineConfig.of(model=str(folder), **engine_options)
    # An item of media fits in any case.
    longest = max(config.max_encoder_length, spec.item_positions)
    config = dataclasses.replace(config, max_encoder_length=longest)
    info = ModelInfo.read(folder, model, overrides)
    footprint = Footprint.of(config)
    inputs, outputs = sequence
    if inputs is None:
        inputs = spec.item_positions or _INPUT_TOKENS
    return {
        "model": model,
        "family": info.family,
        "revision": info.revision,
        "spec": dataclasses.asdict(spec),
        "defaults": _defaults(folder, info, overrides or {}),
        "tasks": {name: dict(task.settings) for name, task in info.tasks.items()},
        "languages": None if info.speech else _languages(folder, info),
        "speech": None if info.speech is None else _speech(folder, info.speech, spec),
        "memory": {
            "counted_from": "weights" if has_weights(folder) else "config.json",
            **dataclasses.asdict(footprint),
            "kv_cache": footprint.kv_cache,
            "fits": {
                "input_tokens": inputs,
                "output_tokens": outputs,
                "sequences": footprint.sequences(inputs, outputs),
            },
        },
        "workers": list(_workers(folder, inputs, outputs)),
    }


def _workers(folder: Path, inputs: int, outputs: int) -> Iterator[dict[str, Any]]:
    """What workers take, by precision and by ranks of a decoder; sizes in bytes, on each rank. Ranks that do
    not divide the model's heads are left out.

    inputs, outputs: lengths of the sequences whose K/V are counted.
    """
    for precision in _PRECISIONS:
        alone: Footprint | None = None
        for ranks in _RANKS:
            try:
                found = Footprint.of(
                    EngineConfig.of(
                        model=str(folder), tensor_parallel_size=ranks, num_pages=1, **precision.options
                    )
                )
            except ModelLoadError as error:
                if error.field != "tensor_parallel_size":
                    raise
                continue
            alone = alone or found
            sequence = found.sequence_pages(inputs, outputs) * found.page_bytes
            yield {
                "precision": precision.name,
                "device": found.device,
                "ranks": ranks,
                "encoder_worker": alone.encoder_weights,  # which has one rank
                "decoder_worker": found.decoder_weights,
                "colocated": found.encoder_weights + found.decoder_weights,
                "parts": dict(found.parts),
                "kv": {str(slots): slots * sequence for slots in SLOTS},
            }


def _languages(folder: Path, info: ModelInfo) -> dict[str, dict[str, str]] | None:
    """What a model translates from and to, its own codes with their names; None where it says nothing of
    languages, or its tokenizer is elsewhere."""
    try:
        tokenizer = read_tokenizer(folder)
    except ModelLoadError:
        return None
    tasks = Tasks.of(info.tasks, info.defaults, tokenizer)

    def named(names: LanguageNames) -> dict[str, str]:
        return {code: names.name(code) for code in names.codes}

    return {"sources": named(tasks.sources), "targets": named(tasks.targets)} if tasks.targets.codes else None


def _speech(folder: Path, speech: Speech, spec: ModelSpec) -> dict[str, Any]:
    """What a speech model hears, and how it transcribes where a request says nothing: transformers' way."""
    front = spec.encoder and spec.encoder.front
    extractor = read_json(folder, CONFIG)
    return {
        "languages": {code: english_name(code) for code in speech.languages or ("en",)},
        "tasks": sorted(speech.tasks) or ["transcribe"],
        "timestamps": speech.no_timestamps_id is not None,
        "word_times": speech.alignment_heads is not None,
        "prompts": speech.before_id is not None,
        "window_s": extractor.get("chunk_length", _CHUNK_LENGTH_S),
        "mel_bins": front.features[0] if front else None,
        "sampling_rate": extractor.get("sampling_rate", _SAMPLING_RATE),
        "defaults": {
            "language": speech.language,
            "task": speech.task,
            "condition_on_prev_tokens": speech.condition_on_prev_tokens,
            "compression_ratio_threshold": speech.compression_ratio_threshold,
            "logprob_threshold": speech.logprob_threshold,
            "no_speech_threshold": speech.no_speech_threshold,
            "max_initial_timestamp": speech.max_initial_timestamp,
        },
    }


def _defaults(folder: Path, info: ModelInfo, overrides: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each decoding default and who sets it."""
    own = own_layers(read_json(folder, "config.json"), generation_config(folder))
    layers = {who: sound(said, info.vocab_size)[0] for who, said in {"server": overrides, **own}.items()}

    def source(name: str) -> str:
        keys = _CALLED.get(name, (name,))
        return next(
            (who for who, values in layers.items() if any(key in values for key in keys)),
            _BUILT_IN,
        )

    return {
        field.name: {"value": getattr(info.defaults, field.name), "from": source(field.name)}
        for field in dataclasses.fields(info.defaults)
    }
