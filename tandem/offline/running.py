"""Prepared requests through the engine of this process."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from tandem.errors import BAD_PROMPT, BadPrompt
from tandem.outputs import RequestOutput, TextDelta
from tandem.workers.request import EncoderInput
from tandem.workers.requests.request_builder import (
    OutputProcessor,
    PreparedRequest,
    RequestBuilder,
    naming_prompt,
)
from tandem.workers.shared_engine import SharedEngine

if TYPE_CHECKING:
    import torch

_PROGRESS_FROM: Final = 4  # inputs; with fewer a progress bar is noise


def progress_bar(total: int, description: str, unit: str, *, use_tqdm: bool) -> tqdm[Any]:
    """The bar of a call with so many inputs, if it is to show one."""
    return tqdm(total=total, desc=description, unit=unit, disable=not use_tqdm or total < _PROGRESS_FROM)


def answer_all(
    engine: SharedEngine,
    builder: RequestBuilder,
    prepared: Sequence[PreparedRequest],
    *,
    use_tqdm: bool,
    refused: dict[int, BadPrompt] | None = None,
) -> list[RequestOutput]:
    """The requests' answers, in their order; see `text_deltas` for what is refused."""
    output_processors = [builder.output_processor(request) for request in prepared]
    tokens = 0
    with (
        progress_bar(len(prepared), "Generating", "prompt", use_tqdm=use_tqdm) as progress,
        closing(text_deltas(engine, prepared, output_processors, refused)) as pieces,
    ):
        for number, piece in pieces:
            tokens += len(piece.token_ids)
            if output_processors[number].finished:
                progress.set_postfix(tokens=tokens, refresh=False)
                progress.update()
        progress.update(len(refused or ()))
    return [output_processor.output() for output_processor in output_processors]


def text_deltas(
    engine: SharedEngine,
    prepared: Sequence[PreparedRequest],
    output_processors: Sequence[OutputProcessor],
    refused: dict[int, BadPrompt] | None = None,
) -> Generator[tuple[int, TextDelta]]:
    """Yields what each of these requests grew by, with its number; otherwise as `SharedEngine.deltas`.

    refused: takes, by its number, why a request's media cannot be decoded. None: that is raised, naming the
        prompt.
    """
    where = {
        sequence.request_id: (number, index)
        for number, request in enumerate(prepared)
        for index, sequence in enumerate(request.sequences)
    }
    sequences = [sequence for request in prepared for sequence in request.sequences]
    with closing(engine.deltas(sequences)) as deltas:
        for delta in deltas:
            number, index = where[delta.request_id]
            if delta.error is not None:
                if refused is None or not isinstance(delta.error, BAD_PROMPT):
                    with naming_prompt(number, len(prepared)):
                        raise delta.error
                refused[number] = delta.error
                continue
            pieces = output_processors[number].push(delta)
            if not delta.last and output_processors[number].stopped(index):
                engine.cancel(delta.request_id)
            for piece in pieces:
                yield number, piece


def encode_all(
    engine: SharedEngine, inputs: Sequence[EncoderInput], lengths: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields each input's number and hidden states [length, hidden], batch by batch. Raises InvalidRequest,
    naming the prompt, for media that cannot be decoded.

    lengths: the inputs', in encoder positions.
    """
    for batch in _batches(lengths, engine.engine.config.max_encoder_tokens):
        prepared = []
        for number in batch:
            with naming_prompt(number, len(inputs)):
                prepared.append(engine.engine.prepare(inputs[number]))
        states = engine.encode(prepared)
        yield from zip(batch, states.split([lengths[number] for number in batch]), strict=True)


def _batches(lengths: Sequence[int], budget_tokens: int) -> Iterator[list[int]]:
    """The numbers of all inputs of these lengths in batches, neighbours in length together. An input beyond
    the budget goes alone."""
    batch: list[int] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and tokens + lengths[number] > budget_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(number)
        tokens += lengths[number]
    if batch:
        yield batch
