"""Every limit of a request or a queue, with its unit. They are checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Limits:
    """Caps a server applies to what clients send. It is told them when it starts: `--limit n=4`."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # where it is read from a configuration

    message_bytes: int = 4 * 2**20  # one gRPC message or HTTP body, its media not counted
    body_s: float = 30.0  # for an HTTP body to arrive
    header_bytes: int = 64 * 2**10  # an HTTP request's line and headers
    headers: int = 100  # of one HTTP request
    head_s: float = 10.0  # for an HTTP request's headers to arrive
    connections_per_address: int = 0  # HTTP connections of one address at one listener; 0: any number
    prompts: int = 256  # prompts in one HTTP request, and inputs that are encoded for embeddings at a time
    embeddings: int = 2048  # inputs of one request for embeddings; OpenAI's limit
    segments: int = 2**17  # lines or sentences of one request's texts to translate
    n: int = 64  # samples of one prompt
    targets: int = 256  # to be scored for one prompt
    encoder_tokens: int = 4096  # one encoder input, after tokenization; also bounded by the model
    decoder_tokens: int = 4096  # decoder prompt + max_tokens
    media_items: int = 8  # recordings and images of one request
    queued_media_bytes: int = 2**30  # files of all requests at one router
    media_bytes: int = 25 * 2**20  # all of them together, as files
    audio_seconds: float = 30.0  # one recording that is one encoder input
    image_pixels: int = 40_000_000  # of one image, width x height
    image_text_chars: int = 4096  # of a question that is drawn above an image
    transcription_seconds: float = 7200.0  # one recording that is transcribed, in as many windows as it takes
    queued_audio_seconds: float = (
        8 * 3600.0
    )  # recordings under way at one router; 32 kB each with 80 mel bins
    stop_strings: int = 16
    stop_string_chars: int = 256
    stop_token_ids: int = 64
    bad_words: int = 256  # texts, and as many lists of ids
    bad_word_chars: int = 256
    bad_word_tokens: int = 32
    logit_bias: int = 300  # token ids
    suppress_tokens: int = 256
    ngram_size: int = 32  # tokens of an n-gram that is not to repeat
    num_beams: int = 32
    logprobs: int = 20  # alternatives for each token
    # One prompt's answers have n x max_tokens x (1 + logprobs) values, of up to 16 bytes each on the wire. An
    # answer that gRPC refuses to send, beyond `transport_bytes`, would be generated for nothing.
    answer_values: int = 2**20
    embedding_values: int = 2**21  # numbers of one call's embeddings, each of 4 bytes in gRPC
    request_id_chars: int = 128
    timeout_s: float = 600.0  # longest and default time a request may take
    transcription_timeout_s: float = 3600.0  # the same of a recording that is transcribed
    priority: int = 10  # greatest magnitude, either sign
    queued_requests: int = 4096  # waiting or running sequences at one router

    @property
    def request_bytes(self) -> int:
        """One message with its media."""
        return self.message_bytes + self.media_bytes

    @property
    def base64_request_bytes(self) -> int:
        """One HTTP body whose media are in base64."""
        return self.message_bytes + 4 * -(-self.media_bytes // 3)

    @property
    def transport_bytes(self) -> int:
        """What gRPC itself is set to read and to send. It exceeds `request_bytes`, so that what is too large
        has our answer; answers may be longer than requests."""
        return 4 * self.message_bytes + self.media_bytes


DEFAULT_LIMITS = Limits()

PRIORITY_S = 10.0  # seconds of waiting that one level of priority counts as, in every queue
