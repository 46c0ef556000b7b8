"""Florence-2's tasks: a token such as `<OD>` in a prompt stands for a question, and says what the answer's
text holds: boxes, polygons, labels."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.inputs import Media
from tandem.limits import Limits
from tandem.outputs import Parse, Parsed
from tandem.workers.models.model_folder import read_json
from tandem.workers.models.spec import FrontSpec
from tandem.workers.requests.media.image_file import image_size
from tandem.workers.requests.model_info import ModelInfo

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_FAMILY: Final = "florence2"
_IMAGE_TOKEN: Final = "<image>"


class ImageTasks:
    """transformers' `Florence2Processor`, which knows the questions and parses the answers.

    Its methods may be called from several threads at once.
    """

    def __init__(self, folder: Path, front: FrontSpec, tokenizer: PreTrainedTokenizerBase) -> None:
        """`folder` is the model's, in whose processor_config.json it says how answers are parsed. Raises
        ModelLoadError for a tokenizer that cannot be the model's."""
        from transformers import Florence2Processor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is None or eos is None:
            raise ModelLoadError("has no BOS or no EOS, between which a question stands", field="tokenizer")
        self.around = (bos,), (eos,)  # what stands before and after a question, where there is an image
        named: Any = tokenizer
        if getattr(tokenizer, "image_token", None) is None:  # another model's
            named = copy.copy(tokenizer)
            named.image_token, named.image_token_id = _IMAGE_TOKEN, front.placeholder_id
        config = read_json(folder, "processor_config.json").get("post_processor_config")
        self._tokenizer: Any = tokenizer
        # The processor asks for an image processor, but only counts its positions.
        self._processor: Any = Florence2Processor(
            CLIPImageProcessorPil(image_seq_length=front.positions), named, post_processor_config=config
        )
        if not config:
            logger.warning(
                "%s has no post_processor_config in processor_config.json: no phrase is left out of "
                "<CAPTION_TO_PHRASE_GROUNDING>'s answers",
                folder,
            )
            kinds = self._processor.tasks_answer_post_processing_type.values()
            self._processor.post_processor.parse_task_config = {kind: {} for kind in kinds}

    @classmethod
    def read(cls, folder: Path, info: ModelInfo, tokenizer: PreTrainedTokenizerBase) -> ImageTasks | None:
        """The tasks of a model in a folder; None for a model that has none."""
        if info.family != _FAMILY or info.front is None:
            return None
        return cls(folder, info.front, tokenizer)

    def question(self, text: str, field: str) -> str:
        """What the encoder reads for a prompt's text: a task's question, or the text itself where it has no
        task's token. Raises InvalidRequest for text next to the token of a task that takes none."""
        try:
            (question,) = self._processor._construct_prompts(text)
        except ValueError as error:
            raise InvalidRequest(str(error), field=field) from None
        return str(question)

    def parse(self, text: str | None, media: Sequence[Media], limits: Limits) -> Parse | None:
        """What parses the answers to a prompt of this text and these images; None where it asks for no task,
        or there is no image whose places the answer could say."""
        tasks = [task for task in self._processor.tasks_answer_post_processing_type if task in (text or "")]
        if not tasks or not media:
            return None
        return partial(self.parsed, tasks[0], image_size(media[0].data, limits.image_pixels))

    def parsed(self, task: str, size: tuple[int, int], ids: Sequence[int]) -> Parsed | None:
        """`Florence2Processor.post_process_generation` of an answer; None where it raises an error.

        Args:
            size: width and height of the image, in pixels, to which places in the answer are scaled.
            ids: the answer with what the decoder started from.
        """
        kind = self._processor.tasks_answer_post_processing_type[task]
        text = shortened(self._tokenizer.decode(list(ids), skip_special_tokens=False), kind)
        try:
            found: Parsed = self._processor.post_process_generation(text, task=task, image_size=size)
        except (ValueError, RuntimeError) as error:  # letters may spell a place, with a number of any size
            logger.warning("an answer to %s is not parsed: %s", task, type(error).__name__)
            return None
        return found


# transformers' patterns take a time in the square of a text's length where no places follow it, which for an
# answer of a few thousand characters is seconds: such text is left out before.
_QUAD: Final = re.compile(r"(?:<loc_\d+>){8,}")
_RUN: Final = re.compile(r"(/?[a-z]+(?:_\d{1,4300})?>)?([^<]*)")  # the rest of a tag, after its <, and text
_BOX: Final = re.compile(r"(?:<loc_\d+>){4}")
_POLYGON: Final = re.compile(r"(?:<loc_\d+>|<sep>|<poly>|</poly>){4}")


def shortened(text: str, kind: str) -> str:
    """An answer without text that says nothing, for `Florence2PostProcessor`, which finds the same in it.

    kind: one of its `parse_tasks`.
    """
    if kind == "pure_text":
        return text
    text = text.replace("<s>", "").replace("</s>", "").replace("<pad>", "")
    if kind == "ocr":  # nothing on a line after its last quadrilateral counts
        ends = (max((quad.end() for quad in _QUAD.finditer(line)), default=0) for line in text.split("\n"))
        return "\n".join(line[:end] for line, end in zip(text.split("\n"), ends, strict=True))
    polygons = "<poly>" in text if kind == "description_with_bboxes_or_polygons" else "polygons" in kind
    places = _POLYGON if polygons else _BOX

    def run(found: re.Match[str]) -> str:
        tag, words = found[1] or "", found[2]
        if not places.match(text, found.end()):
            return tag + words[:1]
        bare = words.lstrip()
        return tag + (words[:1] if len(bare) < len(words) else "") + bare

    return _RUN.sub(run, text)


def with_tokenizers_ends(info: ModelInfo, tokenizer: PreTrainedTokenizerBase) -> ModelInfo:
    """The tokenizer's end counts where a Florence-2's configs call padding the end: fine-tunes are published
    with ids 1 and 2 confused, whose answers would end nowhere but at their greatest length."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if info.family != _FAMILY or end is None or end in info.eos_ids or pad not in info.eos_ids:
        return info
    logger.warning(
        "%s: eos_token_id %s of its configs is the tokenizer's padding; the tokenizer's EOS, %d, is taken. "
        "Set bos_token_id %s, eos_token_id %d and pad_token_id %d in generation_config.json",
        info.name, sorted(info.eos_ids), end, tokenizer.bos_token_id, end, pad,
    )  # fmt: skip
    return replace(info, eos_ids=frozenset([end]), pad_id=pad)
