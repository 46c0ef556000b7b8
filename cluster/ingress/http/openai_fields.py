"""The fields of OpenAI's requests and of vLLM's beyond them: which have no effect, which are refused and why.

What is in neither table is a field of the request's own, a request option, or a parameter of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from tandem.errors import InvalidRequest, renaming_fields
from tandem.params import BeamSearchParams, Params, params_of

_LEAST_TOP_P: Final = 1e-6


class Fields(BaseModel):
    """Fields that every request may have and that have no effect: they concern OpenAI's accounts, caches and
    monitoring. What a subclass does not name is left in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    session_id: str | None = None  # vLLM's


class StreamOptions(BaseModel):
    """What a stream has besides its deltas."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    # vLLM's: with include_usage, every chunk has the usage so far.
    continuous_usage_stats: bool | None = None
    # OpenAI pads its chunks against observers of their sizes, where the network is not trusted: TLS and a
    # gateway's compression are for the one before this server. Without effect.
    include_obfuscation: bool | None = None


class Unsupported(NamedTuple):
    """A field that is refused unless it asks for nothing."""

    reason: str
    inert: tuple[object, ...] = ()  # values that ask for nothing; null is one for every field


_SCHEMA: Final = Unsupported("is not supported: nothing holds an answer to a grammar or a schema")
_HANDOFF: Final = Unsupported(
    "is not supported: what workers hand to each other is the server's own business"
)
_NO_TOOLS: Final = "is not supported: the model calls no tools"
_MEDIA: Final = Unsupported("is not supported: media are read as the model's own processor says")

# Fields that completions and chats share.
GENERATION: Final[Mapping[str, Unsupported]] = {
    "echo": Unsupported(
        "is not supported: an answer has no prompt in it; /score gives a given text's log-probabilities",
        (False,),
    ),
    "allowed_token_ids": Unsupported("is not supported: suppress_tokens and logit_bias keep tokens out"),
    "logprob_token_ids": Unsupported("is not supported: logprobs gives the likeliest tokens'"),
    "include_stop_str_in_output": Unsupported(
        "is not supported: the stop text is no part of the answer, stop_reason names it", (False,)
    ),
    "spaces_between_special_tokens": Unsupported(
        "is not supported: a text is what the tokenizer's decode says", (True,)
    ),
    "response_format": _SCHEMA._replace(inert=({"type": "text"},)),
    "structured_outputs": _SCHEMA,
    "guided_json": _SCHEMA,
    "guided_regex": _SCHEMA,
    "guided_choice": _SCHEMA,
    "guided_grammar": _SCHEMA,
    "guided_decoding_backend": _SCHEMA,
    "guided_whitespace_pattern": _SCHEMA,
    "structural_tag": _SCHEMA,
    "truncation_side": Unsupported(
        "is not supported: truncate_prompt_tokens keeps a prompt's beginning, and a decoder-only model's end"
    ),
    "logits_processors": Unsupported("is not supported: the server runs no code of a request's"),
    "watermarking": Unsupported("is not supported", (False,)),
    "cache_salt": Unsupported("is not supported: clients share the hidden states of equal inputs"),
    "kv_transfer_params": _HANDOFF,
    "ec_transfer_params": _HANDOFF,
    "vllm_xargs": Unsupported("is not supported: it is for vLLM's plug-ins"),
    "repetition_detection": Unsupported(
        "is not supported: repetition_penalty and no_repeat_ngram_size keep an answer from repeating itself"
    ),
    "thinking_token_budget": Unsupported("is not supported: the model does not think apart", (-1,)),
    "routed_experts_prompt_start": Unsupported("is not supported: the model has no experts", (0,)),
    "return_token_offsets": Unsupported("is not supported: an answer has its own text alone", (False,)),
    "return_mm_kwargs": Unsupported("is not supported: an answer has none", (True, False)),
    "stream_interval": Unsupported("is not supported: tokens are sent as they come", (1,)),
}

COMPLETION: Final[Mapping[str, Unsupported]] = {
    **GENERATION,
    "suffix": Unsupported("is not supported: the model does not fill in what stands before a text", ("",)),
    "prompt_embeds": Unsupported("is not supported: a prompt is text or token ids"),
    "prompt_token_ids": Unsupported("is not supported: give prompt a list of token ids"),
    "add_special_tokens": Unsupported(
        "is not supported: a prompt of token ids has the special tokens that it is given", (True,)
    ),
}

CHAT: Final[Mapping[str, Unsupported]] = {
    **GENERATION,
    "prompt_token_ids": Unsupported(
        "is not supported: the chat template makes them; /v1/completions takes a list of ids as its prompt"
    ),
    "tools": Unsupported(_NO_TOOLS, ([],)),
    "tool_choice": Unsupported(_NO_TOOLS, ("none",)),
    "functions": Unsupported(_NO_TOOLS, ([],)),
    "function_call": Unsupported(_NO_TOOLS, ("none",)),
    "parallel_tool_calls": Unsupported(_NO_TOOLS, (True, False)),
    "audio": Unsupported("is not supported: an answer is text"),
    "modalities": Unsupported("is not supported: an answer is text", (["text"],)),
    "moderation": Unsupported("is not supported: answers are not moderated"),
    "web_search_options": Unsupported("is not supported: nothing is searched"),
    "verbosity": Unsupported("is not supported: max_completion_tokens bounds an answer", ("medium",)),
    "reasoning_effort": Unsupported("is not supported: the model does not think apart", ("none",)),
    "include_reasoning": Unsupported("is not supported: the model does not think apart", (True, False)),
    "add_special_tokens": Unsupported("is not supported: the chat template writes them", (False,)),
    "chat_template": Unsupported(
        "is not supported: the server runs the model's own template and none of a request's"
    ),
    "return_prompt_text": Unsupported(
        "is not supported: return_token_ids and /detokenize show the prompt", (False,)
    ),
    "media_io_kwargs": _MEDIA,
    "mm_processor_kwargs": _MEDIA,
}

EMBEDDING: Final[Mapping[str, Unsupported]] = {
    "messages": Unsupported("is not supported: give input"),
    "prompt_token_ids": Unsupported("is not supported: give input a list of token ids"),
    "padding": Unsupported("is not supported: what is computed with an input does not change it", (False,)),
    "use_activation": Unsupported("is not supported: states are pooled as they are"),
    "embed_dtype": Unsupported("is not supported: embeddings are float32", ("float32",)),
    "endianness": Unsupported("is not supported: base64 holds little-endian numbers", ("little", "native")),
    "add_special_tokens": COMPLETION["add_special_tokens"],
    "truncation_side": GENERATION["truncation_side"],
    "cache_salt": GENERATION["cache_salt"],
    "mm_processor_kwargs": _MEDIA,
    "media_io_kwargs": _MEDIA,
}


_OF_A_CHAT: Final = Unsupported(
    "is not supported: give prompt or text; return_token_ids shows the prompt that a chat becomes"
)
TOKENIZE: Final[Mapping[str, Unsupported]] = {
    "messages": _OF_A_CHAT,
    "tools": _OF_A_CHAT._replace(inert=([],)),
    "chat_template": _OF_A_CHAT,
    "chat_template_kwargs": _OF_A_CHAT._replace(inert=({},)),
    "add_generation_prompt": _OF_A_CHAT._replace(inert=(True,)),
    "continue_final_message": _OF_A_CHAT._replace(inert=(False,)),
    "media_io_kwargs": _MEDIA,
    "mm_processor_kwargs": _MEDIA,
}


def refuse_unsupported(values: dict[str, Any], unsupported: Mapping[str, Unsupported]) -> None:
    """Takes the table's fields out of a request. Raises InvalidRequest, naming the first that asks for
    something."""
    for name in unsupported.keys() & values.keys():
        value, (reason, inert) = values.pop(name), unsupported[name]
        if value is not None and not any(type(value) is type(one) and value == one for one in inert):
            raise InvalidRequest(reason, field=name)


def decoding_params(values: dict[str, Any]) -> Params:
    """The parameters of decoding among fields that are left, as `params_of` reads them. Null is any one's
    default. `use_beam_search` has vLLM's meaning: `n` beams and as many answers, of which nothing is drawn.

    Raises InvalidRequest, naming the field.
    """
    values = {name: value for name, value in values.items() if value is not None}
    if type(values.get("seed")) is int and values["seed"] == -1:  # vLLM's: any
        del values["seed"]
    if (
        type(values.get("top_p")) in (int, float) and values["top_p"] == 0
    ):  # OpenAI's: the likeliest token alone
        values["top_p"] = _LEAST_TOP_P
    if values.pop("best_of", n := values.get("n", 1)) != n:
        raise InvalidRequest("is not supported: n answers are drawn, and n are returned", field="best_of")
    search = values.pop("use_beam_search", False)
    if not isinstance(search, bool):
        raise InvalidRequest("must be true or false", field="use_beam_search")
    if search:
        return _vllm_beam_search(values)
    return params_of(values)


def _vllm_beam_search(values: dict[str, Any]) -> Params:
    for name in ("num_beams", "num_return_sequences"):
        if name in values:
            raise InvalidRequest("does not go with use_beam_search, where n says it", field=name)
    beams = values.pop("n", 1)
    if values.pop("temperature", 1) not in (0, 1):
        raise InvalidRequest(
            "does not go with use_beam_search; num_beams with a temperature draws beams", field="temperature"
        )
    with renaming_fields({"num_beams": "n", "num_return_sequences": "n"}):
        return BeamSearchParams(**values, num_beams=beams, num_return_sequences=beams, temperature=0.0)
