"""A conversation → the text of a prompt, by the model's own chat template, and its images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tandem.errors import InvalidRequest
from tandem.limits import Limits
from tandem.workers.models.model_folder import read_json
from tandem.workers.requests.media.data_uri import file_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES: Final = ("system", "developer", "user", "assistant")
# The parts that are text, and the member that has it: OpenAI's of chats, and of its Responses.
_TEXTS: Final = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}
# The parts that are images, of both, too. Both have their URI as "image_url".
_IMAGES: Final = ("image_url", "input_image")
_IMAGE_MEMBERS: Final = frozenset({"type", "image_url", "detail"})
_DETAILS: Final = ("auto", "low", "high", "original")  # how closely OpenAI's models look: without effect
# What a template's expressions raise where a conversation is not what they expect, besides jinja2's own.
_FAULTS: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a chat template is given."""

    messages: Sequence[Any]  # OpenAI's, unchecked
    add_generation_prompt: bool = True  # the assistant's next message begins
    continue_final_message: bool = False  # the last message goes on
    documents: list[dict[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)  # the template's, by name


@dataclass(frozen=True, slots=True)
class ReadMessages:
    """OpenAI's messages as templates know them."""

    messages: list[dict[str, Any]]  # each content is a text, or a list of parts
    images: list[bytes]  # files, in the order of their parts


class ChatTemplate:
    """A tokenizer's template, which transformers compiles once and runs in jinja2's sandbox. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformers.utils.chat_template_utils import render_jinja_template

        self.exists = bool(tokenizer.chat_template)
        self._tokenizer: Any = tokenizer
        # Names that a template's variables cannot have: the messages, and the arguments of what is called.
        calls = (tokenizer.apply_chat_template, render_jinja_template)
        self._taken = {"messages", "self"}.union(*(inspect.signature(call).parameters for call in calls))

    def render(self, conversation: Conversation, messages: list[dict[str, Any]]) -> str:
        """The text of `apply_chat_template`, which has the special tokens in it.

        Raises InvalidRequest, naming the field, for what the template refuses.
        """
        import jinja2

        for name in sorted(self._taken & conversation.variables.keys()):
            raise InvalidRequest("is no variable of a template", field=f"chat_template_kwargs.{name}")
        if conversation.add_generation_prompt and conversation.continue_final_message:
            raise InvalidRequest("does not go with add_generation_prompt", field="continue_final_message")
        try:
            template = self._tokenizer.get_chat_template()
            # The newer name of the system's role; a template that does not know it knows the older.
            if "developer" not in template:
                messages = [
                    {**one, "role": "system"} if one["role"] == "developer" else one for one in messages
                ]
            text: str = self._tokenizer.apply_chat_template(
                messages,
                documents=conversation.documents,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final_message=conversation.continue_final_message,
                tokenize=False,
                **conversation.variables,
            )
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise InvalidRequest(f"the chat template refuses them: {error}", field="messages") from None
        return text


def take_processors_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Gives a tokenizer the template of the model's processor, which older repositories of models that read
    images have in a file of its own."""
    template = read_json(folder, "chat_template.json").get("chat_template")
    if template and not (folder / "chat_template.jinja").is_file():
        tokenizer.chat_template = template


def read_messages(messages: object, limits: Limits, *, images: bool) -> ReadMessages:
    """OpenAI's messages, checked. A content of parts is one text, or a list of parts where the model reads
    `images`. Raises InvalidRequest and RequestTooLarge, naming the field."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("must be a list of messages, and not empty", field="messages")
    reader = _Reader(limits, images)
    read = [reader.message(message, f"messages[{at}]") for at, message in enumerate(messages)]
    return ReadMessages(read, reader.files)


def image_fields(messages: object) -> list[str]:
    """What clients call the images of messages, in their order."""
    fields = []
    for at, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") in _IMAGES:
                fields.append(_uri(part, f"messages[{at}].content[{number}]")[1])
    return fields


def sole_text(conversation: Conversation, read: ReadMessages, model: str, image_token: str | None) -> str:
    """The text of a conversation's only message, for a model without a template: its texts as lines.

    image_token: stands for an image in the model's prompts. It takes the place of each image, unless the text
        has it already. None: images have no place in the text.

    Raises InvalidRequest for anything that takes a template.
    """
    needs = f"takes a chat template, which {model!r} does not have"
    for field_name, asked in (
        ("continue_final_message", conversation.continue_final_message),
        ("add_generation_prompt", not conversation.add_generation_prompt),
        ("documents", conversation.documents),
        ("chat_template_kwargs", conversation.variables),
    ):
        if asked:
            raise InvalidRequest(needs, field=field_name)
    only = "give one message of the user's, whose images and text are the prompt"
    if len(read.messages) > 1:
        raise InvalidRequest(f"more than one {needs}: {only}", field="messages")
    [message] = read.messages
    if message["role"] != "user":
        raise InvalidRequest(f"{message['role']!r} {needs}: {only}", field="messages[0].role")
    content = message["content"]
    if isinstance(content, str):
        return content
    text = "\n".join(part["text"] for part in content if part["type"] == "text")
    if image_token is None or image_token in text:
        return text
    made, last = "", "image"
    for part in content:
        between = "\n" if part["type"] == last == "text" else ""
        made += between + (part["text"] if part["type"] == "text" else image_token)
        last = part["type"]
    return made


class _Reader:
    """Reads one conversation."""

    def __init__(self, limits: Limits, images: bool) -> None:
        self.files: list[bytes] = []  # the images' so far
        self._limits, self._images = limits, images

    def message(self, message: object, name: str) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise InvalidRequest(f"must be an object, got {type(message).__name__}", field=name)
        # Clients give an answer's message back as they got it, with the fields that are null or empty.
        said = {key: value for key, value in message.items() if value not in (None, "", [], {})}
        role, content = said.pop("role", None), said.pop("content", "")
        if role in ("tool", "function") or "tool_calls" in said or "function_call" in said:
            raise InvalidRequest("is not supported: the model calls no tools", field=name)
        if role not in _ROLES:
            raise InvalidRequest(f"must be one of {', '.join(_ROLES)}, got {role!r}", field=f"{name}.role")
        read = {"role": role, "content": self._content(content, f"{name}.content")}
        if isinstance(author := said.pop("name", ""), str):
            read |= {"name": author} if author else {}
        else:
            raise InvalidRequest("must be a string", field=f"{name}.name")
        for key in sorted(said):
            raise InvalidRequest(
                "is not supported: a message has a role, a content and a name", field=f"{name}.{key}"
            )
        return read

    def _content(self, content: object, name: str) -> str | list[dict[str, str]]:
        """A text, or a list of parts. Of text alone they are lines."""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise InvalidRequest(
                f"must be a string or a list of parts, got {type(content).__name__}", field=name
            )
        parts = [self._part(part, f"{name}[{at}]") for at, part in enumerate(content)]
        return parts if self._images else "\n".join(part["text"] for part in parts)

    def _part(self, part: object, name: str) -> dict[str, str]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _IMAGES and self._images:
            assert isinstance(part, dict)
            self._image(part, name)
            return {"type": "image"}
        if not isinstance(kind, str) or kind not in _TEXTS:
            known = [*_TEXTS, *(_IMAGES if self._images else ())]
            reads = "" if self._images or kind not in _IMAGES else "; the model reads no images"
            raise InvalidRequest(
                f"must be a part of type {' or '.join(known)}, got {kind!r}{reads}", field=f"{name}.type"
            )
        assert isinstance(part, dict)
        if not isinstance(text := part.get(_TEXTS[kind]), str):
            raise InvalidRequest("must be a string", field=f"{name}.{_TEXTS[kind]}")
        return {"type": "text", "text": text}

    def _image(self, part: Mapping[str, Any], name: str) -> None:
        if len(self.files) == self._limits.media_items:
            raise InvalidRequest(f"at most {self._limits.media_items} images", field="messages")
        inner = part.get("image_url")
        members = [(part, name, _IMAGE_MEMBERS)]
        if isinstance(inner, dict):
            members.append((inner, f"{name}.image_url", frozenset({"url", "detail"})))
        for values, place, known in members:
            for key in sorted(key for key in values.keys() - known if values[key] is not None):
                raise InvalidRequest("is not supported", field=f"{place}.{key}")
            if values.get("detail") not in (None, *_DETAILS):
                raise InvalidRequest(f"must be one of {', '.join(_DETAILS)}", field=f"{place}.detail")
        uri, field_name = _uri(part, name)
        if not isinstance(uri, str):
            raise InvalidRequest("must be a string", field=field_name)
        self.files.append(file_of(uri, field_name, self._limits.media_bytes))


def _uri(part: Mapping[str, Any], name: str) -> tuple[object, str]:
    """An image part's URI, unchecked, and what clients call it."""
    value = part.get("image_url")
    if isinstance(value, str) or part["type"] == "input_image":
        return value, f"{name}.image_url"
    return value.get("url") if isinstance(value, dict) else None, f"{name}.image_url.url"
