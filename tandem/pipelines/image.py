"""transformers' pipelines of images: "image-text-to-text", and version 4's "image-to-text"."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, cast

from tandem.errors import InvalidRequest, renaming_fields
from tandem.generate_arguments import ARGUMENTS, to_params
from tandem.inputs import MultiModalData, Prompt, TextPrompt, TokensPrompt
from tandem.offline import LLM
from tandem.outputs import RequestOutput
from tandem.pipelines.owner import ModelOwner
from tandem.workers.requests.media.data_uri import file_of
from tandem.workers.requests.media.image_file import FIELD
from tandem.workers.requests.parameters.defaults import merged
from tandem.workers.requests.prompts.chat import take_processors_template
from tandem.workers.requests.prompts.image_places import ImagePlaces

if TYPE_CHECKING:
    from tandem.inputs import Image

IMAGE_TO_TEXT: Final = "image-to-text"
IMAGE_TEXT_TO_TEXT: Final = "image-text-to-text"
# Batches form by themselves: batch_size has no effect.
_SHARED: Final = frozenset({"generate_kwargs", "batch_size"})
_OF_TASK: Final = {
    IMAGE_TO_TEXT: _SHARED | {"prompt"},
    IMAGE_TEXT_TO_TEXT: _SHARED
    | {
        "return_full_text",
        "return_tensors",
        "skip_special_tokens",
        "clean_up_tokenization_spaces",
        "continue_final_message",
    },
}
CALL_ARGUMENTS: Final = ARGUMENTS.union(*_OF_TASK.values())
_MAX_NEW_TOKENS: Final = 256  # transformers', where neither the call nor the model says a length
_LENGTHS: Final = frozenset({"max_new_tokens", "max_length"})
_LARGEST: Final = 2**31  # bytes of a file
_RESIDUE: Final = 2  # characters that may stand before an input in a sequence's text, as transformers has it

Record = dict[str, Any]
Chat = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Input:
    """One prompt, and what a call's results repeat of it."""

    prompt: Prompt
    shown: str | Chat
    counted: int = 1  # tokens of `max_length` before the first new one
    goes_on: bool = False  # the answer belongs to the chat's last message
    image_fields: Sequence[str] = ()  # what errors call a chat's images


class ImagePipeline(ModelOwner):
    """What both tasks share. `close` (or `with`) ends the worker processes of a model that it has loaded."""

    def __init__(self, task: str, llm: LLM, arguments: Mapping[str, Any], *, owned: bool) -> None:
        super().__init__(task, llm, owned=owned)
        if "image" not in llm.info.modalities:
            raise InvalidRequest(f"{llm.info.name!r} reads no images", field="model")
        self.tokenizer: Any = llm.get_tokenizer(target=True)
        take_processors_template(self.tokenizer, llm.folder)
        self._image_places = ImagePlaces.of(llm.info.front, self.tokenizer)
        self._arguments = self._flat(arguments)

    def _flat(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments with those of `generate_kwargs` among them."""
        nested = arguments.get("generate_kwargs") or {}
        if not isinstance(nested, Mapping):
            raise InvalidRequest("must be a dict", field="generate_kwargs")
        for name in nested.keys() & arguments.keys():
            raise InvalidRequest("is said twice, also in generate_kwargs", field=name)
        flat = {**arguments, **nested}
        for name in sorted(flat.keys() - ARGUMENTS - _OF_TASK[self.task]):
            raise InvalidRequest("unknown parameter", field=name)
        return {name: value for name, value in flat.items() if name not in _SHARED}

    def _split(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of `generate` and the pipeline's own, for one call."""
        given = merged(self._arguments, self._flat(arguments))
        call = {name: given.pop(name) for name in list(given) if name not in ARGUMENTS}
        return given, call

    def _generate(self, inputs: Sequence[_Input], given: Mapping[str, Any]) -> list[RequestOutput]:
        own, most = self.llm.info.defaults, self.llm.info.decoder_positions
        said = own.max_new_tokens or own.max_length or not given.keys().isdisjoint(_LENGTHS)
        params = []
        for one in inputs:
            room = _MAX_NEW_TOKENS if most is None else min(_MAX_NEW_TOKENS, max(1, most - one.counted))
            length = {} if said else {"max_new_tokens": room}
            params.append(
                to_params({**given, **length}, one.counted, beams=own.beams, sampling=own.temperature > 0)
            )
        return self.llm.generate([one.prompt for one in inputs], params, use_tqdm=False)

    def _prompt(self, text: str, images: Sequence[Image]) -> tuple[Prompt, int]:
        """A prompt, and its tokens that `max_length` counts."""
        media = MultiModalData(image=list(images))
        if self.llm.info.media_token_id is not None:
            # The text is the decoder's, as mllama's processor has it.
            from transformers.models.mllama.processing_mllama import build_string_from_input

            token = self.tokenizer.convert_ids_to_tokens(self.llm.info.media_token_id)
            ids = self.tokenizer(build_string_from_input(text, self.tokenizer.bos_token, token))["input_ids"]
            return TokensPrompt(prompt_token_ids=ids, prompt=text, multi_modal_data=media), len(ids)
        counted = 1
        front = self.llm.info.front
        if self.llm.info.encoder_vocab_size is None and text and not (front and front.header):
            counted += len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return TextPrompt(prompt=text, multi_modal_data=media), counted


class ImageToTextPipeline(ImagePipeline):
    """`pipeline("image-to-text")` makes it."""

    def __call__(self, inputs: Any, **arguments: Any) -> list[Any]:
        """Images to texts.

        Args:
            inputs: an image or several. One is a file's path or bytes, a Pillow image or an array.
            arguments: prompt, the text that the model reads or goes on from; max_new_tokens and the other
                arguments of transformers' `generate`, also as `generate_kwargs`; batch_size, without effect.
                They go before the pipeline's own.

        For one image a list with {"generated_text": …} for each returned sequence, for several a list of such
        lists. A text begins with the decoder's prompt. Raises InvalidRequest, naming the argument.
        """
        given, call = self._split(arguments)
        several = isinstance(inputs, list | tuple) or (isinstance(inputs, Iterable) and not _is_image(inputs))
        images = list(inputs) if several else [inputs]
        text = call.get("prompt") or ""
        if not isinstance(text, str):
            raise InvalidRequest(f"must be a str, got {type(text).__name__}", field="prompt")
        with _naming("inputs", "prompt"):
            asked = []
            for number, image in enumerate(images):
                prompt, counted = self._prompt(
                    text, [_read(image, f"inputs.{number}" if several else "inputs")]
                )
                asked.append(_Input(prompt, text, counted))
            outputs = self._generate(asked, given)
        records = [
            [{"generated_text": self._text(output, one)} for one in output.outputs] for output in outputs
        ]
        return records if several else records[0]

    def _text(self, output: RequestOutput, sample: Any) -> str:
        return str(
            self.tokenizer.decode([*output.prompt_token_ids, *sample.token_ids], skip_special_tokens=True)
        )


class ImageTextToTextPipeline(ImagePipeline):
    """`pipeline("image-text-to-text")` makes it."""

    def __call__(self, images: Any = None, text: Any = None, **arguments: Any) -> list[Any]:
        """Images and a text, or a chat, to text.

        Args:
            images: an image or several, of the one text, or as many (or lists of them) as texts. One is a
                file's path or bytes, a `data:` URI, a Pillow image or an array. Or a chat, or a dict with
                "images" and "text".
            text: a text or several, for models with a token for images with one for each; or a chat, whose
                messages have images as {"type": "image", "image" or "url" or "path": …}; or several chats.
            arguments: return_full_text, False for the new text alone; return_tensors, for token ids;
                skip_special_tokens; clean_up_tokenization_spaces; continue_final_message, which a chat whose
                last message is the assistant's does by itself; max_new_tokens and the other arguments of
                transformers' `generate`, also as `generate_kwargs`; batch_size, without effect.

        A list with {"input_text": …, "generated_text": …} for each text and returned sequence; for several
        chats, and for several texts without images, a list of such lists. Raises InvalidRequest, naming the
        argument.
        """
        given, call = self._split(arguments)
        if isinstance(images, Mapping) and text is None:
            images, text = images.get("images"), images.get("text")
        chats = text if text is not None else images
        with _naming("images", "text"):
            if _is_chat(chats):
                if text is not None and images is not None:
                    raise InvalidRequest("a chat's images are in its messages", field="images")
                several = not isinstance(chats[0], Mapping)
                field = "text" if text is not None else "images"
                inputs = [self._chat(one, call, field) for one in (chats if several else [chats])]
            else:
                several = images is None and not isinstance(text, str)
                inputs = self._texts(images, text)
            with renaming_fields(lambda name: _of_chats(inputs, name)):
                outputs = self._generate(inputs, given)
        records = [self._records(*pair, call) for pair in zip(inputs, outputs, strict=True)]
        return records if several else list(chain.from_iterable(records))

    def _texts(self, images: Any, text: Any) -> list[_Input]:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
            raise InvalidRequest("must be a text, a list of texts or a chat", field="text")
        several = isinstance(images, list | tuple)
        if images is None:
            each: list[Any] = [[] for _ in texts]
        elif isinstance(text, str):
            each = [images if several else [images]]
        else:
            each = [
                one if isinstance(one, list | tuple) else [one] for one in (images if several else [images])
            ]
        if len(each) != len(texts):
            raise InvalidRequest(f"{len(each)} for {len(texts)} texts", field="images")
        read = ([_read(one, "images") for one in own] for own in each)
        prompts = (self._prompt(one, own) for one, own in zip(texts, read, strict=True))
        return [_Input(prompt, one, counted) for one, (prompt, counted) in zip(texts, prompts, strict=True)]

    def _chat(self, chat: Chat, call: Mapping[str, Any], field: str) -> _Input:
        if not self.tokenizer.chat_template:
            raise InvalidRequest(
                f"{self.llm.info.name!r} has no chat template: give images and a text", field=field
            )
        images: list[Image] = []
        fields: list[str] = []
        messages = [_message(one, f"{field}.{number}", images, fields) for number, one in enumerate(chat)]
        goes_on = call.get("continue_final_message")
        if goes_on is None:
            goes_on = messages[-1]["role"] == "assistant"
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
            )
        except Exception as error:  # a template's expressions raise what they like
            raise InvalidRequest(f"the chat template refuses it: {error}", field=field) from None
        bos = self.tokenizer.bos_token
        special = bos is None or not text.startswith(bos)
        if (places := self._image_places) is not None:
            text = places.text(text, len(images), field)
        ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        if places is not None:
            ids = places.spread(ids, len(images), field)
        media = MultiModalData(image=images)
        prompt = TokensPrompt(prompt_token_ids=ids, multi_modal_data=media)
        counted = len(ids) if self.llm.info.media_token_id is not None else 1
        return _Input(prompt, list(chat), counted, bool(goes_on), fields)

    def _records(self, asked: _Input, output: RequestOutput, call: Mapping[str, Any]) -> list[Record]:
        options = {"skip_special_tokens": call.get("skip_special_tokens", True)}
        if (clean := call.get("clean_up_tokenization_spaces")) is not None:
            options["clean_up_tokenization_spaces"] = clean
        # The encoder's prompt where it reads text, as in transformers; else the decoder's.
        read = (
            output.prompt_token_ids
            if self.llm.info.encoder_vocab_size is None
            else output.encoder_prompt_token_ids
        )
        before = self.tokenizer.decode(read, **options)
        records = []
        for sample in output.outputs:
            ids = [*output.prompt_token_ids, *sample.token_ids]
            if call.get("return_tensors"):
                import torch

                records.append({"input_text": asked.shown, "generated_token_ids": torch.tensor(ids)})
                continue
            new = self.tokenizer.decode(ids, **options)
            if 0 <= (at := new.find(before)) <= _RESIDUE:
                new = new[at + len(before) :]
            full = call.get("return_full_text", True)
            generated = _whole(asked, new) if full else new
            records.append({"input_text": asked.shown, "generated_text": generated})
        return records


def _whole(asked: _Input, new: str) -> str | list[Any]:
    """The text, or the chat, with what is new."""
    if isinstance(asked.shown, str):
        return asked.shown + new
    *before, last = asked.shown
    if not asked.goes_on:
        return [*before, last, {"role": "assistant", "content": new}]
    content = last["content"]
    if isinstance(content, str):
        content += new
    else:
        content = [*content[:-1], {**content[-1], "text": content[-1]["text"] + new}]
    return [*before, {"role": last["role"], "content": content}]


def _message(message: Any, field: str, images: list[Image], fields: list[str]) -> dict[str, Any]:
    """A message as templates know it, whose images and what errors call them go to the lists."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InvalidRequest('must have "role" and "content"', field=field)
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    parts = []
    for number, part in enumerate(content):
        name = f"{field}.content.{number}"
        if not isinstance(part, Mapping) or "type" not in part:
            raise InvalidRequest('must be a part with its "type"', field=name)
        if part["type"] == "image_url":
            url = part.get("image_url")
            part = {"type": "image", "url": url.get("url") if isinstance(url, Mapping) else url}
        if part["type"] == "image":
            given = [part[key] for key in ("image", "url", "path", "base64") if part.get(key) is not None]
            if len(given) != 1:
                raise InvalidRequest('must have one of "image", "url", "path"', field=name)
            images.append(_read(given[0], name))
            fields.append(name)
            part = {"type": "image"}
        parts.append(part)
    return {**message, "content": parts}


def _of_chats(inputs: Sequence[_Input], name: str) -> str:
    """What the call names an image of its only chat; of several chats, which the error's message tells apart,
    the argument that has them; anything else as it is."""
    fields = [field for one in inputs for field in one.image_fields]
    if not fields or not name.startswith(FIELD):
        return name
    number = name.removeprefix(FIELD).removeprefix(".")
    return fields[int(number or 0)] if len(inputs) == 1 else fields[0].partition(".")[0]


def _is_chat(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], list | tuple | Mapping)


def _is_image(value: Any) -> bool:
    from PIL import Image as Pillow

    return isinstance(value, str | bytes | os.PathLike | Pillow.Image) or hasattr(value, "__array__")


def _read(value: Any, field: str) -> Image:
    """An image as `LLM` takes it. Raises InvalidRequest for an address."""
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        raise InvalidRequest("is an address: fetch the file, and give that", field=field)
    if isinstance(value, str) and value.startswith("data:"):
        return file_of(value, field, _LARGEST)
    if not _is_image(value):
        raise InvalidRequest(
            f"must be a path, a file's bytes, a PIL.Image or an array, got {type(value).__name__}",
            field=field,
        )
    return cast("Image", value)


@contextmanager
def _naming(images: str, text: str) -> Iterator[None]:
    """Errors name the arguments of a call."""
    names = dict.fromkeys(("prompt", "prompt_token_ids", "decoder_prompt"), text)
    names |= {"multi_modal_data.image": images, "max_tokens": "max_new_tokens"}
    with renaming_fields(names):
        yield
