"""Texts → translations, by one model in one direction."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.documents import answer_segments
from tandem.cluster.ingress.http.libretranslate.phrases import Phrase, translate_phrases
from tandem.cluster.ingress.service import Service
from tandem.errors import renaming_fields
from tandem.inputs import TaskOptions
from tandem.params import BeamSearchParams, Params, SamplingParams
from tandem.workers.requests.segmentation.segments import Split, has_letters

_FIELDS: Final = {"prompt": "q", "source_language": "source", "target_language": "target"}


class Translator:
    """The translations of one call, which has a time for all of them."""

    def __init__(
        self, service: Service, call: Call, told: TaskOptions, split: Split, request_id: str | None
    ) -> None:
        self._service, self._call, self._told, self._split = service, call, told, split
        self._request_id = request_id
        self._end: float | None = None  # when its time, which begins with the first texts, is over

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
                timeout_s=self._left_s(),
                request_id=self._request_id,
                **self._told,
            )
        samples = iter([[sample.text for output in each for sample in output.outputs] for each in outputs])
        made = (
            _different(
                document.join(texts) for texts in _in_step(list(islice(samples, len(document.segments))))
            )
            for document in documents
        )
        return [next(made)[: 1 + count] if has_letters(text) else [text] for text in texts]

    def _left_s(self) -> float:
        if self._end is not None:
            return max(0.0, self._end - time.monotonic())
        longest_s = self._service.config.limits.timeout_s
        self._end = time.monotonic() + longest_s
        return longest_s

    def _params(self, count: int) -> list[Params]:
        best = SamplingParams(temperature=0)  # in the model's own way: it may be beam search
        if not count:
            return [best]
        config = self._service.config
        # One beam more than asked for, because one is likely to find the best again.
        width = max(2, min(count + 2, config.limits.num_beams, config.max_num_seqs))
        return [best, BeamSearchParams(num_beams=width, num_return_sequences=width, temperature=0)]


def _in_step(samples: list[list[str]]) -> Iterator[list[str]]:
    """The segments' first samples, their second ones, …: a segment that has no more repeats its best."""
    for number in range(max(map(len, samples), default=1)):
        yield [each[number] if number < len(each) else each[0] for each in samples]


def _different(texts: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(texts))
