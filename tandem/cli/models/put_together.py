"""A checkpoint of transformers' EncoderDecoderModel, put together from two others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.families import spec_of
from tandem.workers.models.model_folder import read_json, resolve
from tandem.workers.requests.prompts.tokenizer import DECODER_TOKENIZER, read_tokenizer


@dataclass(frozen=True)
class Composed:
    """What was put together."""

    folder: Path
    new_weights: tuple[str, ...]  # names in the checkpoint; neither part has them, so they are random
    two_tokenizers: bool  # the decoder has another one, in a subfolder


def put_together(encoder: str, decoder: str, out: str | Path, *, seed: int = 0) -> Composed:
    """Puts an encoder and a decoder, each a folder or a hub id, together in the folder `out`.

    The weights are the parts' own but for cross-attention (and the projection between unequal widths),
    which is drawn at random from the seed: the model wants fine-tuning. The decoder starts from its
    tokenizer's CLS or BOS token and ends at SEP or EOS.

    Raises ModelLoadError for parts that do not go together, InvalidRequest for a folder that is not empty.
    """
    import torch
    from transformers import EncoderDecoderModel

    parts = resolve(encoder, served=False), resolve(decoder, served=False)
    configs = [read_json(part, "config.json") for part in parts]
    # Refuses, by name, what could not be served.
    spec_of({"model_type": "encoder-decoder", "encoder": configs[0], "decoder": configs[1]})
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidRequest(f"{folder} exists and is not an empty folder", field="out")
    source, target = map(read_tokenizer, parts)
    ids = _special_ids(target)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = EncoderDecoderModel.from_encoder_decoder_pretrained(
                *map(str, parts),
                encoder_use_safetensors=True, encoder_local_files_only=True,
                decoder_use_safetensors=True, decoder_local_files_only=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"{encoder} and {decoder} cannot be put together: {error}") from error
    for settings in (model.config, model.generation_config):
        for name, value in ids.items():
            setattr(settings, name, value)
    model.config.vocab_size = model.config.decoder.vocab_size
    model.save_pretrained(folder)
    source.save_pretrained(folder)
    two = source.get_vocab() != target.get_vocab()
    if two:
        target.save_pretrained(folder / DECODER_TOKENIZER)
    Checkpoint(folder)  # complete, or it says what is missing
    new = (name for name in model.state_dict() if "cross" in name or name.startswith("enc_to_dec_proj"))
    return Composed(folder, tuple(sorted(new)), two)


def _special_ids(tokenizer: Any) -> dict[str, int]:
    """The decoder's start, EOS and pad ids. Raises ModelLoadError where its tokenizer lacks one."""

    def first(*names: str) -> int:
        found = [getattr(tokenizer, f"{name}_token_id", None) for name in names]
        known = [one for one in found if one is not None]
        if not known:
            raise ModelLoadError(f"the decoder's tokenizer has none of {', '.join(names)}", field="decoder")
        return int(known[0])

    return {
        "decoder_start_token_id": first("cls", "bos", "eos"),
        "eos_token_id": first("sep", "eos"),
        "pad_token_id": first("pad", "sep", "eos"),
    }
