"""A document as the segments that a sentence model translates, and what stands between them.

    document = segment("Good morning.\\nHow are you? Fine.", "sentence", language="en", fits=fits)
    document.segments  # ("Good morning.", "How are you?", "Fine.")
    document.join(["Bonjour.", "Comment vas-tu ?", "Bien."])  # "Bonjour.\\nComment vas-tu ? Bien."

Every segment is a prompt of its own: models of sentences (Marian, NLLB, T5's translation tasks) drop or
blend what a longer text says, the bundled one 8 of 16 sentences in pairs and 12 in fours. With "line" as many
sentences of a line are together as a segment may have tokens, for models that know longer texts.
`RequestBuilder.segment` knows the language, and how long a segment of its model may be.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Final, Literal, get_args

from tandem.errors import InvalidRequest
from tandem.outputs import CompletionOutput, RequestOutput
from tandem.workers.requests.languages.tags import subtag_of
from tandem.workers.requests.segmentation.abbreviations import goes_on

Split = Literal["none", "line", "sentence"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

# Everything that some reader takes for the end of a line.
_ENDS: Final = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_LINE: Final = re.compile(rf"[^{_ENDS}]*(?:\r\n|[{_ENDS}]|\Z)")

# Characters of a line that the segmenter is given at once, which bounds its time.
_WINDOW: Final = 2048
_LONG: Final = 1536  # characters of a sentence that is not looked at again from its beginning

# Marks of Markdown around a sentence: the segmenter leaves the last ones to the next.
_CLOSING_MARK: Final = re.compile(r"[*_~`]+(?:\s+|\Z)")
_LOOK_AHEAD: Final = 32  # characters of what follows a sentence, by which it may go on

# Khmer's full stop is no end to the segmenter, which knows it as the one of other languages.
_KHMER_END, _DANDA = "។", "।"

# A quotation or a parenthesis has no other one of its kind within, so that none is looked through for each of
# the openings before it.
_QUOTED: Final = re.compile(
    r"\"[^\"]*\"|“[^“”]*”|„[^„“”]*[“”]|«[^«»]*»|»[^«»]*«|「[^「」]*」|『[^『』]*』|\([^()]*\)|（[^（）]*）"
)

# Where a sentence that is too long is cut, the best places first: after a sentence within it, after a clause,
# between words. Marks of scripts with spaces count where a space follows, so that "1,000.5", "10:30" and
# "example.com" stay whole. A run of closing marks is read once, not from each of them.
_CLOSER: Final = r"[\"'”’»)\]」』】）]"
_CUTS: Final = (
    re.compile(rf"[。！？｡؟۔।॥።။។៕։]{_CLOSER}*+\s*|[.!?…]{_CLOSER}*+\s+"),
    re.compile(
        rf"[，、；：،؛፣፤၊།]{_CLOSER}*+\s*|[,;:—–]{_CLOSER}*+\s+|\s[—–-]\s+"
        rf"|(?<!{_CLOSER})(?={_CLOSER}*[)\]]){_CLOSER}++\s+"
    ),
    re.compile(r"\s+"),
)

_MOST_CHARACTERS: Final = 16  # a token has on average: a longer text is not counted
_LONGEST_CHARACTER: Final = 16  # code points that are one character to the eye: letters with marks, emoji

# Scripts whose sentences stand without a space between them: Han and kana, with their punctuation.
_CJK: Final = r"\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff9f\U00020000-\U0003ffff"
_UNSPACED_SENTENCES: Final = re.compile(f"[{_CJK}]")
# Scripts whose words do: those, and Thai, Lao, Tibetan, Burmese, Khmer.
_UNSPACED_WORDS: Final = re.compile(rf"[{_CJK}\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff]")


@dataclass(frozen=True, slots=True)
class Document:
    """A text, cut: `gaps[0] + segments[0] + gaps[1] + … + gaps[-1]`.

    Gaps are white space, line ends included, or empty, as between Chinese sentences. So are lines without
    letters, as numbers and rules: models make words of them.
    """

    # Each has letters, but for a text that is left whole; a text without has none.
    segments: tuple[str, ...]
    gaps: tuple[str, ...]  # one more

    def join(self, translations: Sequence[str]) -> str:
        """The segments' translations, in their order, as one text.

        The gaps stay as they are. Where sentences of one language stand apart and those of the other do not,
        an empty gap becomes a space, or spaces become none.
        """
        texts = ["", *(text.strip() for text in translations), ""]
        parts = [self.gaps[0]]
        for number, (before, after) in enumerate(pairwise(texts[1:]), 1):
            parts += before, self.gap(number, before, after)
        return "".join(parts)

    def gap(self, number: int, before: str, after: str) -> str:
        """What stands between two segments' translations, the second of which is that of segment `number`;
        of them the ends are read that meet."""
        gap = self.gaps[number]
        if not 0 < number < len(self.segments):
            return gap
        return _gap(gap, (self.segments[number - 1], self.segments[number]), (before, after))

    @classmethod
    def whole(cls, text: str) -> Document:
        """A text that is one segment; none if it is blank."""
        return cls((), (text,)) if is_blank(text) else cls((text,), ("", ""))

    def output(self, text: str, outputs: Sequence[RequestOutput], samples: int = 1) -> RequestOutput:
        """The answer to `text`, the whole document, from those to its segments: their texts joined, their
        tokens one after another. It has so many `samples`, a blank text's, too, whose answer is the text."""
        if outputs and self.gaps == ("", ""):
            return outputs[0]
        parts = [[output.outputs[index] for output in outputs] for index in range(samples)]
        return RequestOutput(
            request_id=outputs[0].request_id if outputs else "",
            encoder_prompt=text,
            encoder_prompt_token_ids=[i for output in outputs for i in output.encoder_prompt_token_ids],
            prompt=None,
            prompt_token_ids=outputs[0].prompt_token_ids if outputs else [],
            outputs=[self._sample(index, own) for index, own in enumerate(parts)],
            encoder_tokens=sum(output.encoder_tokens for output in outputs),
        )

    def _sample(self, index: int, parts: Sequence[CompletionOutput]) -> CompletionOutput:
        logprobs = [part.logprobs for part in parts if part.logprobs is not None]
        sums = [part.cumulative_logprob for part in parts if part.cumulative_logprob is not None]
        return CompletionOutput(
            index=index,
            text=self.join([part.text for part in parts]),
            token_ids=[i for part in parts for i in part.token_ids],
            finish_reason=next((p.finish_reason for p in parts if p.finish_reason != "stop"), "stop"),
            logprobs=list(chain.from_iterable(logprobs)) if logprobs else None,
            cumulative_logprob=sum(sums) if sums else None,
            score=parts[0].score if len(parts) == 1 else None,  # scores of several beams have no sum
        )


def segment(
    text: str, split: Split, *, language: str | None, fits: Callable[[str], bool], most: int
) -> Document:
    """Cuts a text at the ends of its sentences ("sentence"), or of its lines and, where a line does not fit,
    of as many of its sentences as do ("line"); a sentence that does not fit at clauses, at spaces, then
    anywhere. "none" leaves the text whole.

    Args:
        language: the text's, by any name; its abbreviations and marks count. What names no language is taken
            for English, as the segmenter takes every language that it does not know.
        fits: whether a text is short enough for a segment.
        most: segments.

    Raises InvalidRequest where there are more.
    """
    if split == "none":
        return Document.whole(text)
    segments: list[str] = []
    gaps: list[str] = []
    gap = ""
    for part in _parts(text, split, subtag_of(language or "en") or "en", fits):
        if not has_letters(part):
            gap += part
            continue
        if len(segments) == most:
            raise InvalidRequest(f"has more than {most} segments; send it in parts", field="prompt")
        core = part.strip()
        start = part.index(core)
        segments.append(core)
        gaps.append(gap + part[:start])
        gap = part[start + len(core) :]
    return Document(tuple(segments), (*gaps, gap))


def check_split(split: object) -> None:
    """Raises InvalidRequest for what is not one of `SPLITS`."""
    if split not in SPLITS:
        raise InvalidRequest(f"must be one of {', '.join(SPLITS)}, got {split!r:.60}", field="split")


def within(tokens: int, count: Callable[[str], int]) -> Callable[[str], bool]:
    """Whether a text has at most so many tokens. They are counted where the characters do not say it."""

    def fits(text: str) -> bool:
        if len(text) < tokens and text.isascii():
            return True
        return len(text) <= tokens * _MOST_CHARACTERS and count(text) <= tokens

    return fits


def has_letters(text: str) -> bool:
    """Whether there is something to translate: numbers, marks and emoji are the same in every language."""
    return any(map(str.isalpha, text))


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: white space, control and format characters only."""
    return not text or all(unicodedata.category(char) in _INVISIBLE for char in text)


_INVISIBLE: Final = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})


def _parts(text: str, split: Split, language: str, fits: Callable[[str], bool]) -> Iterator[str]:
    for match in _LINE.finditer(text):
        line = match.group()
        if split == "line" and fits(line.strip()):
            yield line
            continue
        sentences: Iterable[str] = _sentences(line, language)
        for part in sentences if split == "sentence" else _packed(list(sentences), fits):
            yield from _fitting(part, fits)


def _packed(sentences: Sequence[str], fits: Callable[[str], bool]) -> Iterator[str]:
    """Sentences together, as many as fit, and at least one."""

    def fit(end: int) -> bool:
        return fits("".join(sentences[start:end]).strip())

    start = 0
    while start < len(sentences):
        count = 1
        while start + 2 * count <= len(sentences) and fit(start + 2 * count):
            count *= 2
        more = range(start + count + 1, min(start + 2 * count, len(sentences) + 1))
        end = start + count + bisect_left(more, True, key=lambda end: not fit(end))
        yield "".join(sentences[start:end])
        start = end


def _sentences(line: str, language: str) -> Iterator[str]:
    """The sentences of a line, each with the white space after it. What has no letters is none by itself: the
    number of an item goes with the sentence after it, dots and emoji with the one before."""
    before = number = ""
    for sentence in _ended(line, language):
        if has_letters(sentence):
            if before:
                yield before
            before, number = number + sentence, ""
        elif before and not number and not any(map(str.isdigit, sentence)):
            before += sentence
        else:
            number += sentence
    yield before + number


def _ended(line: str, language: str) -> Iterator[str]:
    """What the segmenter finds in a line, and in its quotations and parentheses, which it leaves whole."""
    start = 0
    while start < len(line):
        window = line[start : start + _WINDOW]
        sentences = _segmented(window, language)
        if start + len(window) < len(line):  # the last one may go on
            last = sentences.pop()
            if len(last) > _LONG:  # then little more of it would be seen
                sentences.append(last[: last.rfind(" ") + 1] or last)
        for sentence in sentences:
            begin = 0
            for quoted in _QUOTED.finditer(sentence):
                end = quoted.start() + 1
                for inner in _segmented(sentence[end : quoted.end() - 1], language)[:-1]:
                    end += len(inner)
                    yield sentence[begin:end]
                    begin = end
            yield sentence[begin:]
        start += sum(map(len, sentences))


def _segmented(text: str, language: str) -> list[str]:
    from sentencex import segment as sentences_of

    ends = accumulate(map(len, sentences_of(language, text.replace(_KHMER_END, _DANDA))))
    sentences: list[str] = []
    for start, end in pairwise([0, *ends]):
        if sentences and sentences[-1][-1:].strip() and (mark := _CLOSING_MARK.match(text, start, end)):
            sentences[-1] += mark.group()
            start = mark.end()
        if sentences and goes_on(sentences[-1], text[start : start + _LOOK_AHEAD], language):
            sentences[-1] += text[start:end]
        elif start < end:
            sentences.append(text[start:end])
    return sentences


def _fitting(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """`text`, in halves of halves where it does not fit."""
    core = text.strip()
    if len(core) < 2 or fits(core):
        yield text
        return
    cut = _cut(text)
    yield from _fitting(text[:cut], fits)
    yield from _fitting(text[cut:], fits)


def _cut(text: str) -> int:
    """The place nearest the middle of a text, and not far from it, where it is best cut."""
    middle, away = len(text) // 2, len(text) // 4
    for pattern in _CUTS:
        ends = [match.end() for match in pattern.finditer(text, middle - away, middle + away)]
        if ends := [end for end in ends if 0 < end < len(text)]:
            return min(ends, key=lambda end: abs(end - middle))
    near = range(middle, max(0, middle - _LONGEST_CHARACTER), -1)
    return next((at for at in near if not _joined(text, at)), middle)


def _joined(text: str, at: int) -> bool:
    """Whether the characters before and after a place are one to the eye."""
    joiner = "\u200d"
    return text[at - 1] == joiner or text[at] == joiner or unicodedata.category(text[at]).startswith("M")


def _gap(gap: str, source: tuple[str, str], translation: tuple[str, str]) -> str:
    if not gap:
        apart = _meets(_UNSPACED_WORDS, source) and not _meets(_UNSPACED_WORDS, translation)
        return " " if apart else gap
    if not gap.strip(" ") and not _meets(_UNSPACED_SENTENCES, source):
        return "" if _meets(_UNSPACED_SENTENCES, translation) else gap
    return gap


def _meets(script: re.Pattern[str], texts: tuple[str, str]) -> bool:
    """Whether the first text ends in a script, or the second begins in it."""
    left, right = texts
    return bool(script.match(left[-1:]) or script.match(right[:1]))
