"""Donut's answers: tags around values, which become fields by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tandem.outputs import Parsed
from tandem.workers.models.model_folder import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_FILES: Final = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
_TASK: Final = re.compile("<.*?>")  # the first tag, which the decoder starts from


def processor_classes(folder: Path) -> set[Any]:
    """The names that a model's folder gives to transformers' class that reads its answers."""
    return {read_json(folder, name).get("processor_class") for name in _FILES}


class DocumentFields:
    """transformers' `DonutProcessor.token2json`. It may be called from several threads at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformers import DonutProcessor
        from transformers.models.donut.image_processing_pil_donut import DonutImageProcessorPil

        make: Any = DonutProcessor
        self._tokenizer: Any = tokenizer
        self._processor: Any = make(DonutImageProcessorPil(), tokenizer)

    @classmethod
    def read(cls, folder: Path, tokenizer: PreTrainedTokenizerBase) -> DocumentFields | None:
        """None for a model in a folder that does not say that its answers are read so."""
        return cls(tokenizer) if "DonutProcessor" in processor_classes(folder) else None

    def __call__(self, ids: Sequence[int]) -> Parsed | None:
        """The fields of an answer, whose ids are given with what the decoder started from; an answer without
        tags is the field "text_sequence". None where they are nested too deep."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        for token in (self._tokenizer.eos_token, self._tokenizer.pad_token):
            text = text.replace(token, "") if token else text
        try:
            found: Parsed = self._processor.token2json(_TASK.sub("", text, count=1).strip())
        except RecursionError:
            logger.warning("an answer with fields nested too deep is not parsed")
            return None
        return found
