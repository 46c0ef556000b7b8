"""The families table: Hugging Face config → `ModelSpec`, and our weight names → theirs.

To add a family, add an entry; docs/add-a-family.md walks through it.
"""

from __future__ import annotations

from tandem.errors import ModelLoadError
from tandem.workers.models.families import (
    bart,
    encoder_decoder,
    florence,
    gpt2,
    mllama,
    phi,
    pix2struct,
    t5,
    t5gemma,
    whisper,
)
from tandem.workers.models.families.entry import Config, Family, Part, WeightNames
from tandem.workers.models.spec import ModelSpec

__all__ = ["FAMILIES", "Config", "Family", "Part", "WeightNames", "family_of", "spec_of"]

# By the `model_type` of config.json.
FAMILIES: dict[str, Family] = {
    **t5.FAMILIES,
    **bart.FAMILIES,
    **encoder_decoder.FAMILIES,
    **gpt2.FAMILIES,
    **mllama.FAMILIES,
    **phi.FAMILIES,
    **pix2struct.FAMILIES,
    **t5gemma.FAMILIES,
    **whisper.FAMILIES,
    **florence.FAMILIES,
}

_NGRAM = (
    "its decoder attends in several streams at once, one for each token ahead, with position biases worked "
    "out from the hidden states: another forward than that of all served families"
)
# Known families that are not served, and why.
REFUSED = {"prophetnet": _NGRAM, "xlm-prophetnet": _NGRAM}


def family_of(config: Config) -> Family:
    """The table's entry for a config.json. Raises ModelLoadError, saying why or listing what is served."""
    kind = config.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None and (why := REFUSED.get(str(kind))):
        raise ModelLoadError(f"model_type {kind!r} is not served: {why}", field="model")
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
