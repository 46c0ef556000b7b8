"""`tandem score`: how likely given answers are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from tandem.cli.options import (
    API_KEY_ENV,
    ApiKeyEnvOption,
    JsonLinesOption,
    ModelOption,
    ServerOption,
    SourceLanguageOption,
    TargetLanguageOption,
    TaskOption,
    connect,
    errors_shown,
)

if TYPE_CHECKING:
    from tandem.inputs import TaskOptions
    from tandem.outputs import ScoreOutput


def score(
    prompt: Annotated[str, typer.Argument(help="What the model is asked.", show_default=False)],
    targets: Annotated[list[str], typer.Argument(help="Answers to it.", show_default=False)],
    *,
    model: ModelOption = "quickstart",
    server: ServerOption = None,
    api_key_env: ApiKeyEnvOption = API_KEY_ENV,
    task: TaskOption = None,
    source_language: SourceLanguageOption = None,
    target_language: TargetLanguageOption = None,
    jsonl: JsonLinesOption = False,
) -> None:
    """Score each TARGET as the answer to PROMPT: a line with its loss, a tab and the target, in order.

    The loss is transformers': the mean over the target's tokens of minus their log-likelihood. Less is
    likelier. With --jsonl each token has its own log-likelihood.

    [bold]Examples[/bold]

      tandem score "translate English to French: I am tired." "Je suis fatigué." "Je suis heureux."
      tandem score --model ./results --jsonl "Answer the question: …" "The capital of France is Paris."
    """
    from tandem.inputs import TaskOptions
    from tandem.lines import one_line

    with errors_shown():
        options = TaskOptions(task=task, source_language=source_language, target_language=target_language)
        output = _score(prompt, targets, model, server, api_key_env, options)
    for text, target in zip(targets, output.scores, strict=True):
        if jsonl:
            values = {
                "prompt": prompt,
                "target": text,
                "loss": target.loss,
                "token_ids": target.token_ids,
                "logprobs": target.logprobs,
            }
            print(json.dumps(values, ensure_ascii=False))
        else:
            print(f"{target.loss:.6f}\t{one_line(text)}")


def _score(
    prompt: str,
    targets: list[str],
    model: str,
    server: str | None,
    api_key_env: str,
    options: TaskOptions,
) -> ScoreOutput:
    if server is not None:
        with connect(server, api_key_env) as client:
            return client.score(prompt, targets, **options)
    from tandem.offline import LLM

    with LLM(model) as llm:
        (output,) = llm.score([prompt], [targets], **options)
    return output
