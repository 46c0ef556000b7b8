"""What a model can be asked over HTTP: `/v1/models` says it, and the page at `/` shows that alone."""

from __future__ import annotations

from typing import Any

from tandem.workers.requests.request_builder import RequestBuilder


def capabilities(builder: RequestBuilder) -> dict[str, Any]:
    """Tandem's member of a model's entry in `/v1/models`, whose values are these:

    completion   /v1/completions takes its prompts: text is enough for it
    chat         /v1/chat/completions: it has a chat template
    images       a chat's messages may have images, as data: URIs
    translation  /translate, between the languages of /languages
    tasks        what a request may name as its `task`
    transcription  None, or for /v1/audio/transcriptions its languages, which may be none, and whether
                 /v1/audio/translations translates them into English
    """
    info, speech = builder.info, builder.info.speech
    reads_text = info.decoder_only or info.encoder_vocab_size is not None or info.media_token_id is not None
    return {
        "completion": reads_text,
        "chat": builder.chat_template.exists,
        "images": "image" in info.modalities,
        "translation": bool(builder.tasks.translations),
        "tasks": sorted(info.tasks),
        "transcription": None
        if speech is None
        else {"languages": sorted(speech.languages), "translation": "translate" in speech.tasks},
    }
