"""The answer to a request that scores: the engine's last deltas → the targets' log-likelihoods."""

from __future__ import annotations

from collections.abc import Mapping

from tandem.errors import Cancelled, DeadlineExceeded
from tandem.outputs import ScoreOutput, TargetScore
from tandem.workers.request import Delta, EngineRequest
from tandem.workers.requests.answers.output_processor import PreparedRequest


def score_output(prepared: PreparedRequest, ends: Mapping[str, Delta]) -> ScoreOutput:
    """The answer to a request that scores targets. `ends` are the last deltas by their engine request.

    Raises the error of one, or why one has no scores: DeadlineExceeded, Cancelled.
    """
    return ScoreOutput(
        request_id=prepared.request_id,
        encoder_prompt=prepared.encoder_prompt,
        encoder_prompt_token_ids=prepared.encoder_prompt_token_ids,
        prompt=prepared.prompt,
        prompt_token_ids=prepared.prompt_token_ids,
        scores=[_score(target, ends[target.request_id]) for target in prepared.sequences],
        encoder_tokens=prepared.encoder_tokens,
        media_tokens=prepared.media_tokens,
    )


def _score(target: EngineRequest, end: Delta) -> TargetScore:
    if end.error is not None:
        raise end.error
    if end.finish_reason == "deadline":
        raise DeadlineExceeded("the request's time was over before its targets were scored")
    if end.finish_reason == "cancelled":
        raise Cancelled("the request was cancelled")
    logprobs = [token.logprob for token in end.logprobs or ()]
    return TargetScore(list(target.target_ids), logprobs, sum(logprobs))
