"""The gRPC requests and Tandem's own values, each made from the other, for the client and the ingress alike.
Answers are in `wire_answers`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar, Unpack, cast, get_args

from google.protobuf.message import Message

from tandem.errors import InvalidRequest
from tandem.inputs import (
    CallOptions,
    ExplicitEncoderDecoderPrompt,
    Modality,
    MultiModalData,
    Prompt,
    PromptSide,
    RequestOptions,
    SingletonPrompt,
    TextPrompt,
    TokensPrompt,
    decoder_side,
    listed,
    split_prompt,
)
from tandem.params import BeamSearchParams, EarlyStopping, Params, Pooling, SamplingParams
from tandem.v1 import inference_pb2 as pb

MessageT = TypeVar("MessageT", bound=Message)
GenerateRequest = pb.GenerateRequest | pb.GenerateStreamRequest
GenerateT = TypeVar("GenerateT", pb.GenerateRequest, pb.GenerateStreamRequest)

# What the validator calls the fields of a request, in the words of `tandem.v1`.
FIELDS: Final = {
    "prompt": "encoder_prompt",
    "prompt_token_ids": "encoder_prompt.token_ids",
    ".prompt_token_ids": ".token_ids",
    "multi_modal_data.audio": "encoder_prompt.media",
    "multi_modal_data.image": "encoder_prompt.media",
    ".multi_modal_data.audio": ".media",
    ".multi_modal_data.image": ".media",
    "timeout_s": "timeout_ms",
}

_DECODING: Final = frozenset(pb.DecodingParams.DESCRIPTOR.fields_by_name)

# Values from messages


def prompt_of(request: GenerateRequest | pb.ScoreRequest) -> Prompt:
    """Raises `InvalidRequest` for a prompt that is missing."""
    if not request.HasField("encoder_prompt"):
        raise InvalidRequest("is required", field="encoder_prompt")
    encoder = _encoder_prompt(request.encoder_prompt, "encoder_prompt")
    if not request.HasField("decoder_prompt"):
        return encoder  # a decoder-only model's, too
    decoder = _singleton(request.decoder_prompt, "decoder_prompt")
    return ExplicitEncoderDecoderPrompt(encoder_prompt=encoder, decoder_prompt=decoder)


def targets_of(request: pb.ScoreRequest) -> list[SingletonPrompt]:
    """Raises `InvalidRequest` for a target that is neither text nor ids."""
    return [_singleton(target, f"targets.{number}") for number, target in enumerate(request.targets)]


def params_of(request: GenerateRequest) -> Params | None:
    """None: the model's own way of decoding. Raises `InvalidRequest`, naming the parameter."""
    match request.WhichOneof("params"):
        case "sampling_params":
            return SamplingParams(**plain_fields(request.sampling_params))
        case "beam_search_params":
            return BeamSearchParams(**plain_fields(request.beam_search_params))
    return None


def embed_prompts_of(request: pb.EmbedRequest) -> list[SingletonPrompt]:
    """Raises `InvalidRequest` for a prompt that is neither text nor ids nor media."""
    return [
        _encoder_prompt(prompt, f"encoder_prompts.{number}")
        for number, prompt in enumerate(request.encoder_prompts)
    ]


def pooling_of(request: pb.EmbedRequest) -> Pooling:
    """Raises `InvalidRequest` for a number that is no pooling."""
    if request.pooling not in _POOLINGS:
        raise InvalidRequest(
            f"must be one of {', '.join(pb.Pooling.keys())}, got {request.pooling}", field="pooling"
        )
    return _POOLINGS[request.pooling]


def options_of(message: pb.RequestOptions) -> RequestOptions:
    """The options that are set; they are not validated yet."""
    options: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    if "timeout_ms" in options:
        options["timeout_s"] = options.pop("timeout_ms") / 1000
    return cast(RequestOptions, options)


def media_bytes(request: Message) -> int:
    """How much of a request is media, which have a limit of their own."""
    if isinstance(request, pb.TranscribeRequest | pb.TranscribeStreamRequest):
        return len(request.audio)
    if isinstance(request, GenerateRequest | pb.ScoreRequest):
        prompts: Iterable[pb.EncoderPrompt] = [request.encoder_prompt]
    else:
        prompts = request.encoder_prompts if isinstance(request, pb.EmbedRequest) else ()
    return sum(len(media.data) for prompt in prompts for media in prompt.media)


_MODALITIES: Final[dict[Modality, pb.Media.Modality]] = {
    "audio": pb.Media.MODALITY_AUDIO,
    "image": pb.Media.MODALITY_IMAGE,
}


_POOLINGS: Final[dict[int, Pooling]] = {
    pb.POOLING_UNSPECIFIED: "mean",
    pb.POOLING_MEAN: "mean",
    pb.POOLING_FIRST: "first",
    pb.POOLING_NONE: "none",
}


def _encoder_prompt(message: pb.EncoderPrompt, field: str) -> SingletonPrompt:
    if not message.media:
        return _singleton(message, field)
    names = {number: name for name, number in _MODALITIES.items()}
    data = MultiModalData()
    for number, media in enumerate(message.media):
        if media.modality not in names:
            raise InvalidRequest(
                f"must be one of {', '.join(map(pb.Media.Modality.Name, names))}",
                field=f"{field}.media.{number}.modality",
            )
        data.setdefault(names[media.modality], []).append(media.data)  # type: ignore[union-attr]
    if message.HasField("token_ids"):
        return TokensPrompt(prompt_token_ids=list(message.token_ids.ids), multi_modal_data=data)
    return TextPrompt(prompt=message.text, multi_modal_data=data)


def _singleton(message: pb.EncoderPrompt | pb.Prompt, field: str) -> SingletonPrompt:
    match message.WhichOneof("content"):
        case "text":
            return message.text
        case "token_ids":
            return TokensPrompt(prompt_token_ids=list(message.token_ids.ids))
    raise InvalidRequest("one of text and token_ids is needed", field=field)


_EARLY_STOPPING: Final[dict[int, EarlyStopping | None]] = {
    pb.EARLY_STOPPING_UNSPECIFIED: None,
    pb.EARLY_STOPPING_FALSE: False,
    pb.EARLY_STOPPING_TRUE: True,
    pb.EARLY_STOPPING_NEVER: "never",
}


def plain_fields(message: Message) -> dict[str, Any]:
    """What the message sets, as keyword arguments."""
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if isinstance(value, pb.DecodingParams):
            values |= plain_fields(value)
        else:
            values[field.name] = _plain(value)
    if "early_stopping" in values:
        values["early_stopping"] = _EARLY_STOPPING.get(values["early_stopping"], values["early_stopping"])
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, pb.TokenIds):
        return list(value.ids)
    if isinstance(value, pb.TokenIdLists):
        return [list(ids.ids) for ids in value.lists]
    if isinstance(value, pb.ServerVad):
        return plain_fields(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value if isinstance(value, bool | int | float | str) else list(value)


# Messages from values. All raise `InvalidRequest`, naming the field, for what a message cannot hold.


def generate_request(
    kind: type[GenerateT], prompt: Prompt, params: Params | None = None, **options: Unpack[RequestOptions]
) -> GenerateT:
    encoder, decoder, _ = split_prompt(prompt)
    values = {
        "encoder_prompt": _prompt_fields(encoder),
        "decoder_prompt": _prompt_fields(decoder),
        "sampling_params": _params_fields(params) if isinstance(params, SamplingParams) else None,
        "beam_search_params": _params_fields(params) if isinstance(params, BeamSearchParams) else None,
        "options": options_message(options),
    }
    return make_message(kind, values)


def score_request(
    prompt: Prompt, targets: SingletonPrompt | Sequence[SingletonPrompt], **options: Unpack[RequestOptions]
) -> pb.ScoreRequest:
    encoder, decoder, _ = split_prompt(prompt)
    values = {
        "encoder_prompt": _prompt_fields(encoder),
        "decoder_prompt": _prompt_fields(decoder),
        "targets": [
            _prompt_fields(decoder_side(target, f"targets.{number}"))
            for number, target in enumerate(listed(targets))
        ],
        "options": options_message(options),
    }
    return make_message(pb.ScoreRequest, values)


def embed_request(
    prompts: Sequence[Prompt], pooling: Pooling = "mean", **options: Unpack[RequestOptions]
) -> pb.EmbedRequest:
    encoders = []
    for prompt in prompts:
        encoder, decoder, _ = split_prompt(prompt)
        if decoder is not None:
            raise InvalidRequest("the encoder reads none", field="decoder_prompt")
        encoders.append(_prompt_fields(encoder))
    if pooling not in _POOLINGS.values():
        raise InvalidRequest(
            f"must be one of {', '.join(get_args(Pooling))}, got {pooling!r}", field="pooling"
        )
    values = {
        "encoder_prompts": encoders,
        "pooling": f"POOLING_{pooling.upper()}",
        "options": options_message(options),
    }
    return make_message(pb.EmbedRequest, values)


def tokenize_request(text: str, model: str | None = None) -> pb.TokenizeRequest:
    return make_message(pb.TokenizeRequest, {"text": text, "model": model})


def detokenize_request(
    token_ids: Sequence[int], *, skip_special_tokens: bool = False, model: str | None = None
) -> pb.DetokenizeRequest:
    values = {"token_ids": token_ids, "skip_special_tokens": skip_special_tokens or None, "model": model}
    return make_message(pb.DetokenizeRequest, values)


def make_message(kind: type[MessageT], values: Mapping[str, Any]) -> MessageT:
    message = kind()
    for field, value in values.items():
        if value is not None:
            try:
                message.MergeFrom(kind(**{field: value}))
            except (TypeError, ValueError) as error:  # not of the field's type or range; a lone surrogate
                raise InvalidRequest(str(error), field=field) from None
    return message


def options_message(options: RequestOptions | CallOptions) -> pb.RequestOptions | None:
    """None where nothing is set."""
    values: dict[str, Any] = {**options}
    if (timeout_s := values.pop("timeout_s", None)) is not None:
        values["timeout_ms"] = math.ceil(timeout_s * 1000)
    return make_message(pb.RequestOptions, values) if values else None


def _prompt_fields(side: PromptSide | None) -> dict[str, Any] | None:
    if side is None:
        return None
    fields: dict[str, Any] = {"text": side.text}
    if side.token_ids is not None:
        fields = {"token_ids": {"ids": side.token_ids}}
    if side.media:
        fields["media"] = [{"modality": _MODALITIES[one.modality], "data": one.data} for one in side.media]
    return fields


def _params_fields(params: Params) -> dict[str, Any]:
    """What the parameters set, as fields of their message."""
    fields = params.model_dump(exclude_unset=True, exclude_none=True)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if name in fields:
            fields[name] = {"ids": fields[name]}
    if "bad_words_ids" in fields:
        fields["bad_words_ids"] = {"lists": [{"ids": ids} for ids in fields["bad_words_ids"]]}
    if "early_stopping" in fields:
        numbers = {value: number for number, value in _EARLY_STOPPING.items()}
        fields["early_stopping"] = numbers[fields["early_stopping"]]
    if decoding := {name: fields.pop(name) for name in _DECODING & fields.keys()}:
        fields["decoding"] = decoding
    return fields
