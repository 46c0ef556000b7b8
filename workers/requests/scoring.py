"""Scoring between validator and client: the engine's last deltas → the targets' log-likelihoods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem.errors import Cancelled, DeadlineExceeded
from tandem.outputs import ScoreOutput, TargetScore
from tandem.workers.request import Delta, EngineRequest


@dataclass(frozen=True, slots=True)
class PreparedScore:
    """A valid request to score: what its answer repeats, and an engine request for each target."""

    request_id: str
    encoder_prompt: str | None  # as given; None where only ids were
    encoder_prompt_token_ids: list[int]
    prompt: str | None  # the decoder prompt, likewise
    prompt_token_ids: list[int]  # what stands before the targets, start token included
    targets: list[EngineRequest] = field(repr=False)

    def output(self, ends: Mapping[str, Delta]) -> ScoreOutput:
        """`ends` are the last deltas by their request. Raises the error of one, or why one has no scores."""
        return ScoreOutput(
            request_id=self.request_id,
            encoder_prompt=self.encoder_prompt,
            encoder_prompt_token_ids=self.encoder_prompt_token_ids,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            scores=[_score(target, ends[target.request_id]) for target in self.targets],
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
