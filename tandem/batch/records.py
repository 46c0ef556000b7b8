"""Requests and answers as lines of JSON: what `--jsonl` prints and `tandem batch` reads and writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from functools import cache
from typing import Any, Final, cast

from tandem.cluster.ingress.http.openai_fields import COMPLETION
from tandem.errors import InvalidRequest, TandemError, status_of
from tandem.generate_arguments import ARGUMENTS as GENERATE
from tandem.inputs import TASK_OPTIONS, Prompt, RequestOptions, split_prompt
from tandem.lines import not_utf8
from tandem.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from tandem.params import BeamSearchParams, Params, SamplingParams, params_of

PROMPTS: Final = ("prompt", "prompt_token_ids", "encoder_prompt")
# What some readers take for the end of a line, and JSON lets stand.
_ESCAPED: Final = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}
_OPTIONS: Final = (*TASK_OPTIONS, "truncate_prompt_tokens")
_NOT_PARAMS: Final = frozenset({*PROMPTS, *_OPTIONS, "decoder_prompt", "id"})
# Names that are a request's, those that are refused among them: Tandem's, transformers', OpenAI's and vLLM's.
_KNOWN: Final = frozenset(
    {*_NOT_PARAMS, *SamplingParams.model_fields, *BeamSearchParams.model_fields, *GENERATE, *COMPLETION}
)
# What a misspelt name may be meant for. Data sets have prompts and suffixes in many columns.
_MEANT: Final = _KNOWN - {*PROMPTS, "id", "task", "suffix"}
_LONG: Final = 6  # letters, from which on one that differs is a mistake and no other name
_LONG_WRITTEN: Final = 4  # the same of other capitals and dashes
_MISTAKEN: Final = frozenset({"top_q", "beam_size", "num_beam_groups", "diversity_penalty", "penalty_alpha"})
_COLUMNS: Final = frozenset({"logprob"})  # data sets have it, although one letter makes it a parameter
_LIKENESS: Final = 0.75  # difflib's, from which on a column's name is shown with the parameter's
_OF_ANSWERS: Final = frozenset({"outputs", "error"})


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """`name=value` → values by name. A value is JSON; what is not, is text."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"expected NAME=VALUE, got {text!r}", field="param")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def parse(text: bytes) -> dict[str, Any]:
    """A line's object. Raises InvalidRequest for anything else."""
    try:
        values = json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(not_utf8(text, error)) from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"not JSON: {error.msg} at character {error.pos + 1} of the line") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; too deep a nesting
        raise InvalidRequest(f"not JSON that can be read: {error}") from None
    if not isinstance(values, dict):
        raise InvalidRequest(f"must be a JSON object, got {type(values).__name__}")
    return values


def identity(values: Mapping[str, Any], default: int | None) -> int | str | None:
    """A line's own `custom_id`, which is OpenAI's, or `id`; else `default`."""
    own = values.get("custom_id", values.get("id", default))
    return own if type(own) in (int, str) else default


def carried(values: Mapping[str, Any]) -> dict[str, Any]:
    """A line's members that are no part of its request, such as a data set's label, for its answer to have.
    What is a parameter's name but for one mistake is a misspelt parameter, and none of them.

    Raises InvalidRequest for a name that answers have themselves.
    """
    for name in _OF_ANSWERS & values.keys():
        raise InvalidRequest("is a member of the answer: give it another name", field=name)
    return {name: value for name, value in values.items() if not _is_parameter(name)}


def near(name: str) -> str | None:
    """The parameter whose name is like a member's that is carried."""
    return next(iter(get_close_matches(name, _KNOWN, 1, _LIKENESS)), None)


@cache
def _is_parameter(name: str) -> bool:
    if name in _KNOWN or name in _MISTAKEN:
        return True
    return name not in _COLUMNS and misspelt(name, _MEANT)


def misspelt(name: str, names: Iterable[str]) -> bool:
    """Whether a name is one of these but for a mistake: other capitals or dashes (maxTokens), one letter
    more, less or other, or two that changed places."""
    plain = _plain(name)
    return any(
        (plain == _plain(meant) and len(meant) >= _LONG_WRITTEN)
        or (min(len(name), len(meant)) >= _LONG and _one_mistake(name, meant))
        for meant in names
    )


def _plain(name: str) -> str:
    return re.sub("[-_ ]", "", name).casefold()


def _one_mistake(name: str, other: str) -> bool:
    """Whether two different names are an edit of one letter, or a swap of two, apart."""
    if abs(len(name) - len(other)) > 1:
        return False
    pairs = enumerate(zip(name, other, strict=False))
    start = next((at for at, (one, two) in pairs if one != two), min(len(name), len(other)))
    rest, wanted = name[start:], other[start:]
    swapped = rest[1::-1] + rest[2:]
    return wanted in (rest[1:], swapped) or rest == wanted[1:] or rest[1:] == wanted[1:]


def request(
    values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[Prompt, Params | None, RequestOptions]:
    """A line's prompt, decoding parameters and options; what it sets goes before the defaults.

    The prompt is `prompt` (text), `prompt_token_ids`, or `encoder_prompt` (of either kind, nested), the
    first two with an optional `decoder_prompt`. The options are `source_language`, `target_language`, `task`
    and `truncate_prompt_tokens`; all else but `id` and what is `carried` is a parameter.

    Raises InvalidRequest, naming the field.
    """
    if type(values.get("id", 0)) not in (int, str):
        raise InvalidRequest("must be an integer or a string", field="id")
    ignored = carried(values)
    all_values = {**defaults, **{name: value for name, value in values.items() if name not in ignored}}
    params = {name: value for name, value in all_values.items() if name not in _NOT_PARAMS}
    given = {name: values[name] for name in PROMPTS if name in values}
    if len(given) != 1:
        raise InvalidRequest(f"exactly one of {', '.join(PROMPTS)} must be there", field="prompt")
    prompt: Any = given.get("encoder_prompt", given)
    if "encoder_prompt" in given or "decoder_prompt" in values:
        prompt = {"encoder_prompt": prompt, "decoder_prompt": values.get("decoder_prompt")}
    split_prompt(prompt)
    return prompt, parameters(params), options(all_values)


def options(values: Mapping[str, Any]) -> RequestOptions:
    """The request's options among values by name. Raises InvalidRequest, naming the one at fault."""
    given = {name: values[name] for name in _OPTIONS if values.get(name) is not None}
    for name, value in given.items():
        kind = str if name in TASK_OPTIONS else int
        if type(value) is not kind:
            raise InvalidRequest(f"must be of type {kind.__name__}, got {type(value).__name__}", field=name)
    return cast(RequestOptions, given)


def parameters(values: Mapping[str, Any]) -> Params | None:
    """Decoding parameters by name; None, which is the model's own way, where there are none.

    Raises InvalidRequest, naming the one at fault.
    """
    given = {name: value for name, value in values.items() if name not in _OPTIONS}
    return params_of(given) if given else None


def answer(output: RequestOutput) -> dict[str, Any]:
    """The answer's part of a line."""
    values: dict[str, Any] = {"outputs": [_sample(sample) for sample in output.outputs]}
    if output.prompt_logprobs is not None:
        values["prompt_logprobs"] = [token and _token(token) for token in output.prompt_logprobs]
    return values


def _sample(sample: CompletionOutput) -> dict[str, Any]:
    values: dict[str, Any] = {
        "text": sample.text,
        "finish_reason": sample.finish_reason,
        "tokens": len(sample.token_ids),
    }
    if sample.score is not None:
        values["score"] = sample.score
    if sample.parsed is not None:
        values["parsed"] = sample.parsed
    if sample.logprobs is not None:
        values["logprobs"] = [_token(token) for token in sample.logprobs]
    return values


def _token(token: TokenLogprobs) -> dict[str, Any]:
    values = asdict(token)
    if token.rank is None:
        del values["rank"]
    return values


def failure(error: TandemError) -> dict[str, Any]:
    """The answer's part of the line of a request that failed, in the shape that HTTP has: OpenAI's."""
    status = status_of(error)
    return {
        "error": {
            "message": str(error),
            "type": status.kind,
            "param": error.field,
            "code": status.grpc.lower(),
        }
    }


def line(values: Mapping[str, Any]) -> str:
    """One line, to every reader of lines, with its end. It can be encoded, even where it quotes half a
    character."""
    text = json.dumps(values, ensure_ascii=False).translate(_ESCAPED)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(values)
    return text + "\n"
