# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EarlyStopping(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EARLY_STOPPING_UNSPECIFIED: _ClassVar[EarlyStopping]
    EARLY_STOPPING_FALSE: _ClassVar[EarlyStopping]
    EARLY_STOPPING_TRUE: _ClassVar[EarlyStopping]
    EARLY_STOPPING_NEVER: _ClassVar[EarlyStopping]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
    FINISH_REASON_DEADLINE: _ClassVar[FinishReason]

class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POOLING_UNSPECIFIED: _ClassVar[Pooling]
    POOLING_MEAN: _ClassVar[Pooling]
    POOLING_FIRST: _ClassVar[Pooling]
    POOLING_NONE: _ClassVar[Pooling]

class Timestamps(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIMESTAMPS_UNSPECIFIED: _ClassVar[Timestamps]
    TIMESTAMPS_NONE: _ClassVar[Timestamps]
    TIMESTAMPS_SEGMENT: _ClassVar[Timestamps]
    TIMESTAMPS_WORD: _ClassVar[Timestamps]

class PromptConditionType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROMPT_CONDITION_TYPE_UNSPECIFIED: _ClassVar[PromptConditionType]
    PROMPT_CONDITION_TYPE_FIRST_SEGMENT: _ClassVar[PromptConditionType]
    PROMPT_CONDITION_TYPE_ALL_SEGMENTS: _ClassVar[PromptConditionType]

class TranscriptionSemantics(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSCRIPTION_SEMANTICS_UNSPECIFIED: _ClassVar[TranscriptionSemantics]
    TRANSCRIPTION_SEMANTICS_TRANSFORMERS: _ClassVar[TranscriptionSemantics]
    TRANSCRIPTION_SEMANTICS_OPENAI: _ClassVar[TranscriptionSemantics]

class TranscriptionMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSCRIPTION_MODE_UNSPECIFIED: _ClassVar[TranscriptionMode]
    TRANSCRIPTION_MODE_SEQUENTIAL: _ClassVar[TranscriptionMode]
    TRANSCRIPTION_MODE_CHUNKED: _ClassVar[TranscriptionMode]
EARLY_STOPPING_UNSPECIFIED: EarlyStopping
EARLY_STOPPING_FALSE: EarlyStopping
EARLY_STOPPING_TRUE: EarlyStopping
EARLY_STOPPING_NEVER: EarlyStopping
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_DEADLINE: FinishReason
POOLING_UNSPECIFIED: Pooling
POOLING_MEAN: Pooling
POOLING_FIRST: Pooling
POOLING_NONE: Pooling
TIMESTAMPS_UNSPECIFIED: Timestamps
TIMESTAMPS_NONE: Timestamps
TIMESTAMPS_SEGMENT: Timestamps
TIMESTAMPS_WORD: Timestamps
PROMPT_CONDITION_TYPE_UNSPECIFIED: PromptConditionType
PROMPT_CONDITION_TYPE_FIRST_SEGMENT: PromptConditionType
PROMPT_CONDITION_TYPE_ALL_SEGMENTS: PromptConditionType
TRANSCRIPTION_SEMANTICS_UNSPECIFIED: TranscriptionSemantics
TRANSCRIPTION_SEMANTICS_TRANSFORMERS: TranscriptionSemantics
TRANSCRIPTION_SEMANTICS_OPENAI: TranscriptionSemantics
TRANSCRIPTION_MODE_UNSPECIFIED: TranscriptionMode
TRANSCRIPTION_MODE_SEQUENTIAL: TranscriptionMode
TRANSCRIPTION_MODE_CHUNKED: TranscriptionMode

class GenerateRequest(_message.Message):
    __slots__ = ("encoder_prompt", "decoder_prompt", "sampling_params", "beam_search_params", "options")
    ENCODER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DECODER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_PARAMS_FIELD_NUMBER: _ClassVar[int]
    BEAM_SEARCH_PARAMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    encoder_prompt: EncoderPrompt
    decoder_prompt: Prompt
    sampling_params: SamplingParams
    beam_search_params: BeamSearchParams
    options: RequestOptions
    def __init__(self, encoder_prompt: _Optional[_Union[EncoderPrompt, _Mapping]] = ..., decoder_prompt: _Optional[_Union[Prompt, _Mapping]] = ..., sampling_params: _Optional[_Union[SamplingParams, _Mapping]] = ..., beam_search_params: _Optional[_Union[BeamSearchParams, _Mapping]] = ..., options: _Optional[_Union[RequestOptions, _Mapping]] = ...) -> None: ...

class GenerateStreamRequest(_message.Message):
    __slots__ = ("encoder_prompt", "decoder_prompt", "sampling_params", "beam_search_params", "options")
    ENCODER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DECODER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_PARAMS_FIELD_NUMBER: _ClassVar[int]
    BEAM_SEARCH_PARAMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    encoder_prompt: EncoderPrompt
    decoder_prompt: Prompt
    sampling_params: SamplingParams
    beam_search_params: BeamSearchParams
    options: RequestOptions
    def __init__(self, encoder_prompt: _Optional[_Union[EncoderPrompt, _Mapping]] = ..., decoder_prompt: _Optional[_Union[Prompt, _Mapping]] = ..., sampling_params: _Optional[_Union[SamplingParams, _Mapping]] = ..., beam_search_params: _Optional[_Union[BeamSearchParams, _Mapping]] = ..., options: _Optional[_Union[RequestOptions, _Mapping]] = ...) -> None: ...

class RequestOptions(_message.Message):
    __slots__ = ("request_id", "model", "priority", "timeout_ms", "source_language", "target_language", "task", "truncate_prompt_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    TARGET_LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    priority: int
    timeout_ms: int
    source_language: str
    target_language: str
    task: str
    truncate_prompt_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., priority: _Optional[int] = ..., timeout_ms: _Optional[int] = ..., source_language: _Optional[str] = ..., target_language: _Optional[str] = ..., task: _Optional[str] = ..., truncate_prompt_tokens: _Optional[int] = ...) -> None: ...

class EncoderPrompt(_message.Message):
    __slots__ = ("text", "token_ids", "media")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    media: _containers.RepeatedCompositeFieldContainer[Media]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., media: _Optional[_Iterable[_Union[Media, _Mapping]]] = ...) -> None: ...

class Media(_message.Message):
    __slots__ = ("modality", "data")
    class Modality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MODALITY_UNSPECIFIED: _ClassVar[Media.Modality]
        MODALITY_AUDIO: _ClassVar[Media.Modality]
        MODALITY_IMAGE: _ClassVar[Media.Modality]
    MODALITY_UNSPECIFIED: Media.Modality
    MODALITY_AUDIO: Media.Modality
    MODALITY_IMAGE: Media.Modality
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    modality: Media.Modality
    data: bytes
    def __init__(self, modality: _Optional[_Union[Media.Modality, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class TokenIdLists(_message.Message):
    __slots__ = ("lists",)
    LISTS_FIELD_NUMBER: _ClassVar[int]
    lists: _containers.RepeatedCompositeFieldContainer[TokenIds]
    def __init__(self, lists: _Optional[_Iterable[_Union[TokenIds, _Mapping]]] = ...) -> None: ...

class DecodingParams(_message.Message):
    __slots__ = ("max_tokens", "min_tokens", "stop_token_ids", "ignore_eos", "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words", "bad_words_ids", "logit_bias", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "skip_special_tokens")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    TYPICAL_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    NO_REPEAT_NGRAM_SIZE_FIELD_NUMBER: _ClassVar[int]
    ENCODER_NO_REPEAT_NGRAM_SIZE_FIELD_NUMBER: _ClassVar[int]
    BAD_WORDS_FIELD_NUMBER: _ClassVar[int]
    BAD_WORDS_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    FORCED_BOS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    FORCED_EOS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SUPPRESS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BEGIN_SUPPRESS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    min_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    seed: int
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    encoder_no_repeat_ngram_size: int
    bad_words: _containers.RepeatedScalarFieldContainer[str]
    bad_words_ids: TokenIdLists
    logit_bias: _containers.ScalarMap[int, float]
    forced_bos_token_id: int
    forced_eos_token_id: int
    suppress_tokens: TokenIds
    begin_suppress_tokens: TokenIds
    skip_special_tokens: bool
    def __init__(self, max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., typical_p: _Optional[float] = ..., seed: _Optional[int] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., no_repeat_ngram_size: _Optional[int] = ..., encoder_no_repeat_ngram_size: _Optional[int] = ..., bad_words: _Optional[_Iterable[str]] = ..., bad_words_ids: _Optional[_Union[TokenIdLists, _Mapping]] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., forced_bos_token_id: _Optional[int] = ..., forced_eos_token_id: _Optional[int] = ..., suppress_tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., begin_suppress_tokens: _Optional[_Union[TokenIds, _Mapping]] = ..., skip_special_tokens: _Optional[bool] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("decoding", "n", "stop", "logprobs", "prompt_logprobs", "num_beams", "length_penalty", "early_stopping")
    DECODING_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_FIELD_NUMBER: _ClassVar[int]
    decoding: DecodingParams
    n: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    logprobs: int
    prompt_logprobs: int
    num_beams: int
    length_penalty: float
    early_stopping: EarlyStopping
    def __init__(self, decoding: _Optional[_Union[DecodingParams, _Mapping]] = ..., n: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., num_beams: _Optional[int] = ..., length_penalty: _Optional[float] = ..., early_stopping: _Optional[_Union[EarlyStopping, str]] = ...) -> None: ...

class BeamSearchParams(_message.Message):
    __slots__ = ("decoding", "num_beams", "num_return_sequences", "length_penalty", "early_stopping")
    DECODING_FIELD_NUMBER: _ClassVar[int]
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    NUM_RETURN_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_FIELD_NUMBER: _ClassVar[int]
    decoding: DecodingParams
    num_beams: int
    num_return_sequences: int
    length_penalty: float
    early_stopping: EarlyStopping
    def __init__(self, decoding: _Optional[_Union[DecodingParams, _Mapping]] = ..., num_beams: _Optional[int] = ..., num_return_sequences: _Optional[int] = ..., length_penalty: _Optional[float] = ..., early_stopping: _Optional[_Union[EarlyStopping, str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("request_id", "prompt", "outputs", "usage")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt: PromptInfo
    outputs: _containers.RepeatedCompositeFieldContainer[Completion]
    usage: Usage
    def __init__(self, request_id: _Optional[str] = ..., prompt: _Optional[_Union[PromptInfo, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Completion, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("started", "delta", "usage")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    started: Started
    delta: CompletionDelta
    usage: Usage
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., delta: _Optional[_Union[CompletionDelta, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request_id", "prompt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt: PromptInfo
    def __init__(self, request_id: _Optional[str] = ..., prompt: _Optional[_Union[PromptInfo, _Mapping]] = ...) -> None: ...

class PromptInfo(_message.Message):
    __slots__ = ("encoder_tokens", "decoder_token_ids", "logprobs", "media_tokens")
    ENCODER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODER_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    encoder_tokens: int
    decoder_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    media_tokens: int
    def __init__(self, encoder_tokens: _Optional[int] = ..., decoder_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., media_tokens: _Optional[int] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("index", "text", "token_ids", "finish", "logprobs", "cumulative_logprob", "score", "parsed_json")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PARSED_JSON_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish: Finish
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    cumulative_logprob: float
    score: float
    parsed_json: str
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., cumulative_logprob: _Optional[float] = ..., score: _Optional[float] = ..., parsed_json: _Optional[str] = ...) -> None: ...

class CompletionDelta(_message.Message):
    __slots__ = ("index", "text", "token_ids", "logprobs", "finish", "score", "prompt_logprobs", "parsed_json")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PARSED_JSON_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    finish: Finish
    score: float
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    parsed_json: str
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., score: _Optional[float] = ..., prompt_logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., parsed_json: _Optional[str] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("reason", "stop_token_id", "stop_text")
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    STOP_TEXT_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    stop_token_id: int
    stop_text: str
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., stop_token_id: _Optional[int] = ..., stop_text: _Optional[str] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("token_id", "logprob", "top", "rank")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    rank: int
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ..., rank: _Optional[int] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("encoder_tokens", "decoder_prompt_tokens", "generated_tokens", "media_tokens")
    ENCODER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODER_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    encoder_tokens: int
    decoder_prompt_tokens: int
    generated_tokens: int
    media_tokens: int
    def __init__(self, encoder_tokens: _Optional[int] = ..., decoder_prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., media_tokens: _Optional[int] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("encoder_prompt", "decoder_prompt", "targets", "options")
    ENCODER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DECODER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    encoder_prompt: EncoderPrompt
    decoder_prompt: Prompt
    targets: _containers.RepeatedCompositeFieldContainer[Prompt]
    options: RequestOptions
    def __init__(self, encoder_prompt: _Optional[_Union[EncoderPrompt, _Mapping]] = ..., decoder_prompt: _Optional[_Union[Prompt, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., options: _Optional[_Union[RequestOptions, _Mapping]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("request_id", "prompt", "scores")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt: PromptInfo
    scores: _containers.RepeatedCompositeFieldContainer[TargetScore]
    def __init__(self, request_id: _Optional[str] = ..., prompt: _Optional[_Union[PromptInfo, _Mapping]] = ..., scores: _Optional[_Iterable[_Union[TargetScore, _Mapping]]] = ...) -> None: ...

class TargetScore(_message.Message):
    __slots__ = ("token_ids", "logprobs", "cumulative_logprob")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    cumulative_logprob: float
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., cumulative_logprob: _Optional[float] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("encoder_prompts", "pooling", "options")
    ENCODER_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    encoder_prompts: _containers.RepeatedCompositeFieldContainer[EncoderPrompt]
    pooling: Pooling
    options: RequestOptions
    def __init__(self, encoder_prompts: _Optional[_Iterable[_Union[EncoderPrompt, _Mapping]]] = ..., pooling: _Optional[_Union[Pooling, str]] = ..., options: _Optional[_Union[RequestOptions, _Mapping]] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("request_id", "embeddings")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    embeddings: _containers.RepeatedCompositeFieldContainer[Embedding]
    def __init__(self, request_id: _Optional[str] = ..., embeddings: _Optional[_Iterable[_Union[Embedding, _Mapping]]] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("encoder_tokens", "width", "values")
    ENCODER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    encoder_tokens: int
    width: int
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, encoder_tokens: _Optional[int] = ..., width: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class TranscribeRequest(_message.Message):
    __slots__ = ("audio", "params", "options")
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    audio: bytes
    params: TranscriptionParams
    options: RequestOptions
    def __init__(self, audio: _Optional[bytes] = ..., params: _Optional[_Union[TranscriptionParams, _Mapping]] = ..., options: _Optional[_Union[RequestOptions, _Mapping]] = ...) -> None: ...

class TranscribeStreamRequest(_message.Message):
    __slots__ = ("audio", "params", "options")
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    audio: bytes
    params: TranscriptionParams
    options: RequestOptions
    def __init__(self, audio: _Optional[bytes] = ..., params: _Optional[_Union[TranscriptionParams, _Mapping]] = ..., options: _Optional[_Union[RequestOptions, _Mapping]] = ...) -> None: ...

class TranscriptionParams(_message.Message):
    __slots__ = ("language", "task", "timestamps", "prompt", "prompt_condition_type", "condition_on_prev_tokens", "temperature", "temperatures", "compression_ratio_threshold", "logprob_threshold", "no_speech_threshold", "num_beams", "length_penalty", "best_of", "max_tokens", "seed", "semantics", "chunking_strategy", "logprobs")
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_CONDITION_TYPE_FIELD_NUMBER: _ClassVar[int]
    CONDITION_ON_PREV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURES_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_RATIO_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    NO_SPEECH_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    NUM_BEAMS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_PENALTY_FIELD_NUMBER: _ClassVar[int]
    BEST_OF_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SEMANTICS_FIELD_NUMBER: _ClassVar[int]
    CHUNKING_STRATEGY_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    language: str
    task: str
    timestamps: Timestamps
    prompt: str
    prompt_condition_type: PromptConditionType
    condition_on_prev_tokens: bool
    temperature: float
    temperatures: _containers.RepeatedScalarFieldContainer[float]
    compression_ratio_threshold: float
    logprob_threshold: float
    no_speech_threshold: float
    num_beams: int
    length_penalty: float
    best_of: int
    max_tokens: int
    seed: int
    semantics: TranscriptionSemantics
    chunking_strategy: ServerVad
    logprobs: bool
    def __init__(self, language: _Optional[str] = ..., task: _Optional[str] = ..., timestamps: _Optional[_Union[Timestamps, str]] = ..., prompt: _Optional[str] = ..., prompt_condition_type: _Optional[_Union[PromptConditionType, str]] = ..., condition_on_prev_tokens: _Optional[bool] = ..., temperature: _Optional[float] = ..., temperatures: _Optional[_Iterable[float]] = ..., compression_ratio_threshold: _Optional[float] = ..., logprob_threshold: _Optional[float] = ..., no_speech_threshold: _Optional[float] = ..., num_beams: _Optional[int] = ..., length_penalty: _Optional[float] = ..., best_of: _Optional[int] = ..., max_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., semantics: _Optional[_Union[TranscriptionSemantics, str]] = ..., chunking_strategy: _Optional[_Union[ServerVad, _Mapping]] = ..., logprobs: _Optional[bool] = ...) -> None: ...

class TranscribeResponse(_message.Message):
    __slots__ = ("request_id", "transcription")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    transcription: Transcription
    def __init__(self, request_id: _Optional[str] = ..., transcription: _Optional[_Union[Transcription, _Mapping]] = ...) -> None: ...

class TranscribeStreamResponse(_message.Message):
    __slots__ = ("request_id", "text", "segments", "done_s", "transcription")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    DONE_S_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPTION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    segments: _containers.RepeatedCompositeFieldContainer[TranscriptionSegment]
    done_s: float
    transcription: Transcription
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., segments: _Optional[_Iterable[_Union[TranscriptionSegment, _Mapping]]] = ..., done_s: _Optional[float] = ..., transcription: _Optional[_Union[Transcription, _Mapping]] = ...) -> None: ...

class Transcription(_message.Message):
    __slots__ = ("text", "language", "duration_s", "segments", "encoder_tokens", "generated_tokens", "mode")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    ENCODER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    text: str
    language: str
    duration_s: float
    segments: _containers.RepeatedCompositeFieldContainer[TranscriptionSegment]
    encoder_tokens: int
    generated_tokens: int
    mode: TranscriptionMode
    def __init__(self, text: _Optional[str] = ..., language: _Optional[str] = ..., duration_s: _Optional[float] = ..., segments: _Optional[_Iterable[_Union[TranscriptionSegment, _Mapping]]] = ..., encoder_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., mode: _Optional[_Union[TranscriptionMode, str]] = ...) -> None: ...

class ServerVad(_message.Message):
    __slots__ = ("threshold", "prefix_padding_ms", "silence_duration_ms")
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    PREFIX_PADDING_MS_FIELD_NUMBER: _ClassVar[int]
    SILENCE_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    prefix_padding_ms: int
    silence_duration_ms: int
    def __init__(self, threshold: _Optional[float] = ..., prefix_padding_ms: _Optional[int] = ..., silence_duration_ms: _Optional[int] = ...) -> None: ...

class TranscriptionSegment(_message.Message):
    __slots__ = ("id", "seek_s", "start_s", "end_s", "text", "token_ids", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob", "words", "logprobs")
    ID_FIELD_NUMBER: _ClassVar[int]
    SEEK_S_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    AVG_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_RATIO_FIELD_NUMBER: _ClassVar[int]
    NO_SPEECH_PROB_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    id: int
    seek_s: float
    start_s: float
    end_s: float
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: TranscriptionWords
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, id: _Optional[int] = ..., seek_s: _Optional[float] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., temperature: _Optional[float] = ..., avg_logprob: _Optional[float] = ..., compression_ratio: _Optional[float] = ..., no_speech_prob: _Optional[float] = ..., words: _Optional[_Union[TranscriptionWords, _Mapping]] = ..., logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class TranscriptionWords(_message.Message):
    __slots__ = ("words",)
    WORDS_FIELD_NUMBER: _ClassVar[int]
    words: _containers.RepeatedCompositeFieldContainer[TranscriptionWord]
    def __init__(self, words: _Optional[_Iterable[_Union[TranscriptionWord, _Mapping]]] = ...) -> None: ...

class TranscriptionWord(_message.Message):
    __slots__ = ("word", "start_s", "end_s", "probability")
    WORD_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    word: str
    start_s: float
    end_s: float
    probability: float
    def __init__(self, word: _Optional[str] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ..., probability: _Optional[float] = ...) -> None: ...

class TranscribeLiveRequest(_message.Message):
    __slots__ = ("start", "pcm", "commit")
    START_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    start: LiveStart
    pcm: bytes
    commit: LiveCommit
    def __init__(self, start: _Optional[_Union[LiveStart, _Mapping]] = ..., pcm: _Optional[bytes] = ..., commit: _Optional[_Union[LiveCommit, _Mapping]] = ...) -> None: ...

class LiveStart(_message.Message):
    __slots__ = ("sample_rate", "language", "task", "prompt", "server_vad", "manual", "step_ms", "options")
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SERVER_VAD_FIELD_NUMBER: _ClassVar[int]
    MANUAL_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    sample_rate: int
    language: str
    task: str
    prompt: str
    server_vad: ServerVad
    manual: LiveCommit
    step_ms: int
    options: RequestOptions
    def __init__(self, sample_rate: _Optional[int] = ..., language: _Optional[str] = ..., task: _Optional[str] = ..., prompt: _Optional[str] = ..., server_vad: _Optional[_Union[ServerVad, _Mapping]] = ..., manual: _Optional[_Union[LiveCommit, _Mapping]] = ..., step_ms: _Optional[int] = ..., options: _Optional[_Union[RequestOptions, _Mapping]] = ...) -> None: ...

class LiveCommit(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TranscribeLiveResponse(_message.Message):
    __slots__ = ("request_id", "turn", "final", "partial", "start_s", "end_s", "language")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    END_S_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    turn: int
    final: str
    partial: str
    start_s: float
    end_s: float
    language: str
    def __init__(self, request_id: _Optional[str] = ..., turn: _Optional[int] = ..., final: _Optional[str] = ..., partial: _Optional[str] = ..., start_s: _Optional[float] = ..., end_s: _Optional[float] = ..., language: _Optional[str] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "text")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DetokenizeRequest(_message.Message):
    __slots__ = ("model", "token_ids", "skip_special_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    skip_special_tokens: bool
    def __init__(self, model: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., skip_special_tokens: _Optional[bool] = ...) -> None: ...

class DetokenizeResponse(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("id", "family", "max_encoder_tokens", "max_decoder_tokens", "max_segment_tokens")
    ID_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    MAX_ENCODER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_DECODER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEGMENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    id: str
    family: str
    max_encoder_tokens: int
    max_decoder_tokens: int
    max_segment_tokens: int
    def __init__(self, id: _Optional[str] = ..., family: _Optional[str] = ..., max_encoder_tokens: _Optional[int] = ..., max_decoder_tokens: _Optional[int] = ..., max_segment_tokens: _Optional[int] = ...) -> None: ...
