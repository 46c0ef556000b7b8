"""Texts → translations, by one model in one direction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.documents import answer_segments
from tandem.cluster.ingress.http.libretranslate.phrases import Phrase, translate_phrases
from tandem.cluster.ingress.service import Service
from tandem.errors import renaming_fields
from tandem.inputs import TaskOptions
from tandem.outputs import CompletionOutput
from tandem.params import BeamSearchParams, Params, SamplingParams
from tandem.workers.requests.segmentation.segments import Document, Split, has_letters

_FIELDS: Final = {"prompt": "q", "source_language": "source", "target_language": "target"}


class Translator:
    """The translations of one call, which has a time for all of them. None is cut off by that: the call ends
    with DeadlineExceeded."""

    def __init__(
        self, service: Service, call: Call, told: TaskOptions, split: Split, request_id: str | None
    ) -> None:
        self._service, self._call, self._told, self._split = service, call, told, split
        self._request_id = request_id
        self._end = min(call.arrival.at + service.config.limits.timeout_s, call.arrival.deadline)
        self.truncated = False  # a translation that was given has reached the model's limit, and is cut off

    async def texts(self, texts: Sequence[str]) -> list[str]:
        """The likeliest translation of each text."""
        return [found[0] for found in await self.alternatives(texts, 0)]

    async def phrases(self, phrases: Sequence[Phrase]) -> list[list[str]]:
        """The translations of each phrase's pieces."""
        return await translate_phrases(phrases, self.texts)

    async def alternatives(self, texts: Sequence[str], count: int) -> list[list[str]]:
        """For each text the likeliest translation, then up to `count` others, all different, the likelier
        first: what beam search finds besides. A text without letters is its own translation."""
        asked = [text for text in texts if has_letters(text)]
        with renaming_fields(_FIELDS):
            params = self._params(count)
            documents = await self._call.segment(asked, self._split, **self._told)
            outputs = await answer_segments(
                self._call,
                [segment for document in documents for segment in document.segments],
                params,
                timeout_s=max(0.0, self._end - asyncio.get_running_loop().time()),
                request_id=self._request_id,
                **self._told,
            )
        samples = iter([[sample for output in each for sample in output.outputs] for each in outputs])
        made = (
            self._given(document, list(islice(samples, len(document.segments))), 1 + count)
            for document in documents
        )
        return [next(made) if has_letters(text) else [text] for text in texts]

    def _given(self, document: Document, samples: list[list[CompletionOutput]], count: int) -> list[str]:
        """The first `count` different translations of a text, from the samples of its segments."""
        found: dict[str, bool] = {}  # whether it is cut off
        for step in _in_step(samples):
            text = document.join([sample.text for sample in step])
            found.setdefault(text, any(sample.finish_reason == "length" for sample in step))
        given = list(found)[:count]
        self.truncated |= any(found[text] for text in given)
        return given

    def _params(self, count: int) -> list[Params]:
        best = SamplingParams(temperature=0)  # in the model's own way: it may be beam search
        if not count:
            return [best]
        config = self._service.config
        # One beam more than asked for, because one is likely to find the best again.
        width = max(2, min(count + 2, config.limits.num_beams, config.max_num_seqs))
        return [best, BeamSearchParams(num_beams=width, num_return_sequences=width, temperature=0)]


def _in_step(samples: list[list[CompletionOutput]]) -> Iterator[list[CompletionOutput]]:
    """The segments' first samples, their second ones, …: a segment that has no more repeats its best."""
    for number in range(max(map(len, samples), default=1)):
        yield [each[number] if number < len(each) else each[0] for each in samples]
