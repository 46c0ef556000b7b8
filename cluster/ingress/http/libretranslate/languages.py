"""A model's languages as LibreTranslate's clients name them, and the language of a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from tandem.cluster.ingress.http.libretranslate.detection import detect
from tandem.errors import InvalidRequest
from tandem.workers.requests.languages.names import LISTED, LanguageNames
from tandem.workers.requests.tasks import Tasks

AUTO: Final = "auto"
# Codes of LibreTranslate's own.
_ALIASES: Final[Mapping[str, str]] = {"zt": "zh-Hant", "pb": "pt-BR"}
_SHOWN: Final = 40  # characters of what a client sent


@dataclass(frozen=True, slots=True)
class Detected:
    """A text's language as the API says it."""

    confidence: float  # percent
    language: str

    def body(self) -> dict[str, Any]:
        return {"confidence": self.confidence, "language": self.language}


class Languages:
    """The languages of one model."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    @cached_property
    def listed(self) -> list[dict[str, Any]]:
        """`/languages`: every language as a BCP 47 tag, its English name, and the languages it is translated
        to."""
        found: dict[str, dict[str, Any]] = {}

        def entry(names: LanguageNames, code: str) -> dict[str, Any]:
            tag = names.tag(code)
            return found.setdefault(tag, {"code": tag, "name": names.name(code), "targets": []})

        for source, targets in self._tasks.translations.items():
            shown = entry(self._tasks.sources, source)
            shown["targets"] = [entry(self._tasks.targets, target)["code"] for target in targets]
        return list(found.values())

    def target(self, asked: str) -> str:
        """The model's own code of a target. Raises InvalidRequest in LibreTranslate's words."""
        return _code(self._tasks.targets, asked)

    def source(self, asked: str, target: str) -> str:
        """A source that goes to `target`, which is a code, as the model's requests may call it."""
        code = _code(self._tasks.sources, asked)
        if target not in self._tasks.translations[code]:
            raise InvalidRequest(
                f"{_named(self._tasks.targets, target)} is not available as a target language from "
                f"{_named(self._tasks.sources, code)}"
            )
        return asked if code == self._tasks.sources.group else code

    def detected_source(self, text: str, target: str) -> tuple[str, Detected]:
        """The likeliest of the sources that go to `target`, as `source` gives it, and how it is shown.

        A language is as sure as it is among all languages; one that the model does not have is not taken.
        """
        names = self._tasks.sources
        sources = [code for code, targets in self._tasks.translations.items() if target in targets]
        for tag, share in detect(text).items():
            if len(found := names.matching(tag)) == 1 and found[0] in sources:
                if found[0] == names.group:
                    return tag, Detected(_percent(share), tag)
                return found[0], Detected(_percent(share), names.tag(found[0]))
        english = [code for code in names.matching("en") if code in sources]
        code = (english or sources)[0]
        return code, Detected(0.0, names.tag(code))

    def detected(self, text: str) -> list[Detected]:
        """The likeliest languages of a text, whether the model has them or not."""
        names = self._tasks.sources
        found = []
        for tag, share in list(detect(text).items())[:3]:
            own = [code for code in names.matching(tag) if code != names.group]
            found.append(Detected(_percent(share), names.tag(own[0]) if len(own) == 1 else tag))
        return [one for one in found if one.confidence] or found[:1] or [Detected(0.0, "en")]


def _code(names: LanguageNames, asked: str) -> str:
    if not names.codes:
        raise InvalidRequest("this model says nothing of languages", field="target")
    found = names.matching(_ALIASES.get(asked.lower(), asked))
    if len(found) == 1:
        return found[0]
    shown = asked[:_SHOWN]
    if found:
        raise InvalidRequest(f"{shown} may be each of {_listed(names, found)}: name one of them")
    if near := names.nearest(asked):
        raise InvalidRequest(f"{shown} is not supported; nearest: {_listed(names, near)}")
    if not names.exists(asked):
        raise InvalidRequest(f"{shown} is not supported")  # LibreTranslate's words, which its tests compare
    there = _listed(names, sorted(names.codes, key=names.name)[:LISTED])
    more = (
        f" and {len(names.codes) - LISTED} more, which /languages lists" if len(names.codes) > LISTED else ""
    )
    raise InvalidRequest(f"{shown} is not supported; there is {there}{more}")


def _listed(names: LanguageNames, codes: Iterable[str]) -> str:
    return ", ".join(_named(names, code) for code in codes)


def _named(names: LanguageNames, code: str) -> str:
    return f"{names.name(code)} ({names.tag(code)})"


def _percent(share: float) -> float:
    return float(round(100 * share))
