"""A conversation → the text of a prompt, by the model's own chat template."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tandem.errors import InvalidRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES: Final = ("system", "developer", "user", "assistant")
# The parts that are text, and the member that has it: OpenAI's of chats, and of its Responses.
_PARTS: Final = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}
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


class ChatTemplate:
    """A tokenizer's template, which transformers compiles once and runs in jinja2's sandbox. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformers.utils.chat_template_utils import render_jinja_template

        self.exists = bool(tokenizer.chat_template)
        self._tokenizer: Any = tokenizer
        # Names that a template's variables cannot have: the messages, and the arguments of what is called.
        calls = (tokenizer.apply_chat_template, render_jinja_template)
        self._taken = {"messages", "self"}.union(*(inspect.signature(call).parameters for call in calls))

    def render(self, conversation: Conversation) -> str:
        """The text of `apply_chat_template`, which has the special tokens in it.

        Raises InvalidRequest, naming the field, for what is no conversation and for what the template
        refuses.
        """
        import jinja2

        for name in sorted(self._taken & conversation.variables.keys()):
            raise InvalidRequest("is no variable of a template", field=f"chat_template_kwargs.{name}")
        if conversation.add_generation_prompt and conversation.continue_final_message:
            raise InvalidRequest("does not go with add_generation_prompt", field="continue_final_message")
        try:
            template = self._tokenizer.get_chat_template()
            # The newer name of the system's role; a template that does not know it knows the older.
            developer = "developer" if "developer" in template else "system"
            text: str = self._tokenizer.apply_chat_template(
                _read(conversation.messages, developer),
                documents=conversation.documents,
                add_generation_prompt=conversation.add_generation_prompt,
                continue_final_message=conversation.continue_final_message,
                tokenize=False,
                **conversation.variables,
            )
        except InvalidRequest:
            raise
        except (jinja2.TemplateError, *_FAULTS) as error:
            raise InvalidRequest(f"the chat template refuses them: {error}", field="messages") from None
        return text


def _read(messages: object, developer: str) -> list[dict[str, str]]:
    """OpenAI's messages as templates know them: each content is one text. Raises InvalidRequest."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("must be a list of messages, and not empty", field="messages")
    return [_message(message, f"messages.{at}", developer) for at, message in enumerate(messages)]


def _message(message: object, name: str, developer: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise InvalidRequest(f"must be an object, got {type(message).__name__}", field=name)
    # Clients give an answer's message back as they got it, with the fields that are null or empty.
    said = {key: value for key, value in message.items() if value not in (None, "", [], {})}
    role, content = said.pop("role", None), said.pop("content", "")
    if role in ("tool", "function") or "tool_calls" in said or "function_call" in said:
        raise InvalidRequest("is not supported: the model calls no tools", field=name)
    if role not in _ROLES:
        raise InvalidRequest(f"must be one of {', '.join(_ROLES)}, got {role!r}", field=f"{name}.role")
    read = {"role": developer if role == "developer" else role, "content": _text(content, f"{name}.content")}
    if isinstance(author := said.pop("name", ""), str):
        read |= {"name": author} if author else {}
    else:
        raise InvalidRequest("must be a string", field=f"{name}.name")
    for key in sorted(said):
        raise InvalidRequest(
            "is not supported: a message has a role, a content and a name", field=f"{name}.{key}"
        )
    return read


def _text(content: object, name: str) -> str:
    """A text, or a list of text parts: their lines."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"must be a string or a list of parts, got {type(content).__name__}", field=name)
    return "\n".join(_part(part, f"{name}.{at}") for at, part in enumerate(content))


def _part(part: object, name: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _PARTS:
        raise InvalidRequest(
            f"must be a part of type {' or '.join(_PARTS)}, got {kind!r}", field=f"{name}.type"
        )
    assert isinstance(part, dict)
    if not isinstance(text := part.get(_PARTS[kind]), str):
        raise InvalidRequest("must be a string", field=f"{name}.{_PARTS[kind]}")
    return text
