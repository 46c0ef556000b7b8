"""transformers' pipeline "automatic-speech-recognition": its calls and its results."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from tandem.errors import InvalidRequest, renaming_fields
from tandem.offline import LLM
from tandem.pipelines.owner import ModelOwner
from tandem.transcription import (
    TranscriptionOptions,
    TranscriptionParams,
    TranscriptionProgress,
    TranscriptionSegment,
)
from tandem.workers.models.model_folder import read_json
from tandem.workers.requests.media.audio import CONFIG
from tandem.workers.requests.parameters.generation_settings import generation_config, own_settings
from tandem.workers.requests.speech import english_name
from tandem.workers.transcription.segments import TIME_S

if TYPE_CHECKING:
    from tandem.inputs import Audio

_PARAMS: Final = frozenset(TranscriptionParams.model_fields) - {"timestamps"}
# Arguments of transformers' `generate` that are read; the others of them have the names of `_PARAMS`.
_GENERATE: Final = frozenset({"max_new_tokens", "prompt_ids", "return_timestamps", "do_sample"})
_CHUNKS: Final = frozenset({"chunk_length_s", "stride_length_s"})
# Windows form batches by themselves: batch_size has no effect.
_CALL: Final = frozenset({"return_timestamps", "return_language", "generate_kwargs", "batch_size"})
CALL_ARGUMENTS: Final = _PARAMS | _GENERATE | _CHUNKS | _CALL

# transformers' defaults, where a model has none of its own.
_NUM_BEAMS: Final = 5
_MAX_NEW_TOKENS: Final = 256
_RATE: Final = 16_000  # the rate of a feature extractor that says none
_MOST_CHANNELS: Final = 2

Result = dict[str, Any]


class SpeechPipeline(ModelOwner):
    """`pipeline` makes it. `close` (or `with`) ends the worker processes of a model that it has loaded."""

    def __init__(self, task: str, llm: LLM, arguments: Mapping[str, Any], *, owned: bool) -> None:
        super().__init__(task, llm, owned=owned)
        if llm.info.speech is None:
            raise InvalidRequest(f"{llm.info.name!r} is no speech model", field="model")
        self.tokenizer: Any = llm.get_tokenizer()
        self._arguments = dict(arguments)
        self._own = own_settings(read_json(llm.folder, "config.json"), generation_config(llm.folder))
        self._rate = int(read_json(llm.folder, CONFIG).get("sampling_rate", _RATE))

    def __call__(self, inputs: Any, **arguments: Any) -> Any:
        """Recordings of any length to text.

        Args:
            inputs: a recording or several. One is a file's path or bytes; samples at the model's rate, an
                array or a tensor, [n], or of one or two channels, [channels, n]; or a dict with the samples
                as "raw" or "array" and their "sampling_rate", or with a "path", whose other members the
                result has, too, in lists.
            arguments: return_timestamps: True gives chunks as the model says their times, "word" each word;
                return_language; generate_kwargs, with arguments of transformers' `generate`: language, task,
                temperature, num_beams, condition_on_prev_tokens, prompt_ids, max_new_tokens and the
                thresholds, or other fields of `TranscriptionParams`, all of which may also be arguments
                themselves; batch_size, without effect. They go before the pipeline's own.

        A dict for one recording, a list for a list, and for any other iterable an iterator, which takes from
        it little ahead of its results. A dict has the "text", and where times or languages are asked for
        "chunks" with "text", "timestamp", in seconds, and "language". The end of the last is None where the
        model does not say it.

        Decoding is transformers': 5 beams where neither the call nor the model says a number. Times and
        texts are, too, except where transformers loses count of long recordings' windows: after one that is
        left out as silence, or that says no end.

        Raises InvalidRequest, naming the argument; for a list before anything is transcribed.
        """
        given = self._given(arguments)
        asked = self._asked(given)
        if isinstance(inputs, str | os.PathLike | bytes | dict) or hasattr(inputs, "__array__"):
            with closing(self._results([self._read(inputs, "inputs")], given, asked)) as results:
                return next(results)
        if isinstance(inputs, list | tuple):
            each = [self._read(one, f"inputs.{number}") for number, one in enumerate(inputs)]
            return list(self._results(each, given, asked))
        if not isinstance(inputs, Iterable):
            raise InvalidRequest(f"must be recordings, got {type(inputs).__name__}", field="inputs")
        read = (self._read(one, f"inputs.{number}") for number, one in enumerate(inputs))
        return self._results(read, given, asked)

    def _results(
        self, recordings: Iterable[_Recording], given: Mapping[str, Any], asked: TranscriptionOptions
    ) -> Generator[Result, None, None]:
        """In the recordings' order."""
        waiting: list[_Recording] = []
        ended: dict[int, TranscriptionProgress] = {}
        number = 0

        def audio() -> Generator[Audio, None, None]:
            for one in recordings:
                waiting.append(one)
                yield one.audio

        names = {"prompt": "prompt_ids"} if "prompt_ids" in given else {}
        with renaming_fields(names), closing(self.llm.transcribe_each(audio(), **asked)) as steps:
            for step in steps:
                if step.answer is None:
                    continue
                ended[step.number] = step
                while number in ended:
                    yield self._result(waiting.pop(0), ended.pop(number), given)
                    number += 1

    def _result(self, recording: _Recording, step: TranscriptionProgress, given: Mapping[str, Any]) -> Result:
        if isinstance(step.answer, InvalidRequest):
            raise InvalidRequest(step.answer.message, field=recording.field)
        assert step.answer is not None
        times = given.get("return_timestamps")
        languages = self._language(step.answer.language) if given.get("return_language") else {}
        if times:
            chunks = self._chunks(step.segments)
        else:
            text = self._text(step.segments)
            chunks = [{"text": text}] if text else []
        result: Result = {"text": "".join(chunk["text"] for chunk in chunks)}
        if times == "word":
            chunks = [
                {"text": word.word, "timestamp": (word.start_s, word.end_s)}
                for one in step.segments
                for word in one.words or ()
            ]
        if times or languages:
            result["chunks"] = [languages | chunk for chunk in chunks]
        return result | {name: [value] for name, value in recording.further.items()}

    def _chunks(self, segments: Sequence[TranscriptionSegment]) -> list[dict[str, Any]]:
        """The segments that have text, from and to the times that the model says; one whose end it does not
        say ends where the next begins."""
        said = [(self._said_times(one), text) for one in segments if (text := self._text([one]))]
        next_begins = (begin for (begin, _), _ in said[1:])
        return [
            {"text": text, "timestamp": (begin, next_begin if end is None else end)}
            for ((begin, end), text), next_begin in zip_longest(said, next_begins)
        ]

    def _said_times(self, segment: TranscriptionSegment) -> tuple[float, float | None]:
        """In seconds of the recording; the end is None where it is not said."""
        times = [token - self._first_time_id for token in segment.token_ids]
        seconds = [None if time < 0 else round(segment.seek_s + time * TIME_S, 2) for time in times]
        begin, end = seconds[0], seconds[-1]
        if len(seconds) > 2 and seconds[-2] is not None:  # transformers adds the time that comes next
            end = seconds[-2]
        return round(segment.start_s, 2) if begin is None else begin, end

    def _text(self, segments: Iterable[TranscriptionSegment]) -> str:
        special = set(self.tokenizer.all_special_ids)
        ids = [
            token
            for one in segments
            for token in one.token_ids
            if token not in special and token < self._first_time_id
        ]
        return str(self.tokenizer.decode(ids)) if ids else ""

    @property
    def _first_time_id(self) -> int:
        speech = self.llm.info.speech
        assert speech is not None
        return self.llm.info.vocab_size if speech.no_timestamps_id is None else speech.first_time_id

    def _language(self, code: str) -> dict[str, str | None]:
        """As transformers names it; None for a model of English alone, and where there is no speech."""
        speech = self.llm.info.speech
        known = speech is not None and code in speech.languages
        return {"language": english_name(code) if known else None}

    # -- arguments

    def _given(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments before the pipeline's own; None counts as left out."""
        given: dict[str, Any] = {}
        for layer in (self._arguments, arguments):
            nested = layer.get("generate_kwargs") or {}
            if not isinstance(nested, Mapping):
                raise InvalidRequest("must be a dict", field="generate_kwargs")
            for name, value in {**nested, **layer}.items():
                if name not in CALL_ARGUMENTS:
                    raise InvalidRequest("unknown parameter", field=name)
                if value is not None:
                    given[name] = value
        if name := next((name for name in sorted(_CHUNKS) if given.get(name)), None):
            raise InvalidRequest(
                "transformers' way of overlapping chunks is not here: leave it out, and recordings of any "
                "length are transcribed window by window",
                field=name,
            )
        if given.get("do_sample"):
            raise InvalidRequest("give a temperature", field="do_sample")
        times = given.setdefault("return_timestamps", bool(self._own.get("return_timestamps")))
        if times not in (True, False, "word"):
            raise InvalidRequest(f'must be True, False or "word", got {times!r}', field="return_timestamps")
        return given

    def _asked(self, given: Mapping[str, Any]) -> TranscriptionOptions:
        """Raises InvalidRequest, naming the argument, for what a transcription cannot be asked."""
        defaults = self.llm.info.defaults
        values: dict[str, Any] = {}
        if "num_beams" not in self._own and defaults.num_beams == 1:
            values["num_beams"] = _NUM_BEAMS
        if defaults.max_length is None and defaults.max_new_tokens is None:
            values["max_tokens"] = _MAX_NEW_TOKENS
        values |= {name: value for name, value in given.items() if name in _PARAMS}
        if "max_new_tokens" in given:
            values["max_tokens"] = given["max_new_tokens"]
        if "prompt_ids" in given:
            values["prompt"] = self._prompt(given["prompt_ids"])
        times = given["return_timestamps"]
        values["timestamps"] = "word" if times == "word" else "segment" if times else None
        with renaming_fields({"max_tokens": "max_new_tokens", "timestamps": "return_timestamps"}):
            TranscriptionParams(**values)
        return cast(TranscriptionOptions, values)

    def _prompt(self, ids: Any) -> str:
        """The text of what `get_prompt_ids` of transformers' tokenizer gave."""
        speech = self.llm.info.speech
        ids = [int(token) for token in ids]
        if speech is None or ids[:1] != [speech.before_id]:
            raise InvalidRequest(
                "must begin with <|startofprev|>, as get_prompt_ids has it", field="prompt_ids"
            )
        said = self.tokenizer.decode(ids[1:])
        again = self.tokenizer(" " + said.strip(), add_special_tokens=False)["input_ids"]
        if again != ids[1:]:
            raise InvalidRequest("are not a text's: give the text as prompt", field="prompt_ids")
        return str(said)

    # -- inputs

    def _read(self, value: Any, field: str) -> _Recording:
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            raise InvalidRequest("is an address: fetch the file, and give that", field=field)
        if isinstance(value, str | os.PathLike | bytes):
            return _Recording(value, {}, field)
        if not isinstance(value, Mapping):
            return _Recording((self._samples(value, field), self._rate), {}, field)
        further = dict(value)
        if further.pop("stride", None) is not None:
            raise InvalidRequest("is for CTC models", field=f"{field}.stride")
        path, rate = further.pop("path", None), further.pop("sampling_rate", None)
        arrays = [further.pop(name, None) for name in ("raw", "array")]
        samples = next((one for one in arrays if one is not None), None)
        if samples is None:
            if path is None:
                raise InvalidRequest(
                    'must have "raw" or "array" with a "sampling_rate", or a "path"', field=field
                )
            return _Recording(path, further, field)
        if rate is None:
            raise InvalidRequest("is needed with samples", field=f"{field}.sampling_rate")
        return _Recording((self._samples(samples, field), rate), further, field)

    def _samples(self, value: Any, field: str) -> Any:
        """[n], mono."""
        array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
        if array.ndim == 1:
            return array
        if array.ndim != 2 or array.shape[0] > _MOST_CHANNELS:
            raise InvalidRequest(
                f"must be samples, [n], or those of one or two channels, [channels, n], got "
                f"{list(array.shape)}",
                field=field,
            )
        return array.mean(axis=0)


class _Recording:
    """One input, read."""

    def __init__(self, audio: Audio, further: Mapping[str, Any], field: str) -> None:
        self.audio, self.further, self.field = audio, further, field
