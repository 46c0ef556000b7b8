"""What tests of chats with images share: parts, files in `data:` URIs, a template of Llama's kind."""

from __future__ import annotations

import base64
from typing import Any

from PIL import Image
from vision import png

# As Llama 3.2 Vision's: contents are texts or lists of parts, and a system's message takes no images.
TEMPLATE = (
    "{{ bos_token }} {% for message in messages %}"
    "{% if message.role == 'system' and message.content is not string %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "{{ raise_exception('Prompting with images is incompatible with system messages.') }}"
    "{% endif %}{% endfor %}{% endif %}"
    "{{ 'ba ' if message.role == 'user' else 'be ' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|image|>"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %} <|eot_id|> "
    "{% endfor %}{% if add_generation_prompt %}be {% endif %}"
)


def uri(image: Image.Image | bytes, kind: str = "image/png") -> str:
    data = image if isinstance(image, bytes) else png(image)
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(image: Image.Image | bytes, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri(image), **more}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
