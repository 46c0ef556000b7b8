"""What a model's languages are called: every name of a language → the model's own code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Final

from tandem.errors import InvalidRequest
from tandem.workers.requests.languages.tags import (
    LONGEST_NAME,
    LanguageTag,
    broader,
    exists,
    fold,
    is_group,
    likely_subtags,
    named_tag,
    parse_tag,
    spoken_in,
    unqualified_tag,
)

_ISO_639_1: Final = re.compile(r"[a-z]{2}")
_REMEMBERED: Final = 1024  # names that were asked for
LISTED: Final = 12  # languages at most, where one is refused; if there are more, the near ones
_NEAREST: Final = 5
_SIMILAR: Final = 0.75  # difflib's ratio
_NEAR: Final = 25  # CLDR's distance from which on speakers of one language do not read the other


class LanguageNames:
    """The languages of one model, by every name that means them. Its methods may be called from several
    threads at once, and look up what was asked before in a dict."""

    def __init__(
        self, codes: Iterable[str], aliases: Mapping[str, str] | None = None, *, any_language: bool = False
    ) -> None:
        """
        Args:
            codes: the model's own.
            aliases: further names, in lower case, by which the model's authors call codes.
            any_language: a code that names no single language ("ROMANCE", "mul") stands for every language.
        """
        self.codes = tuple(dict.fromkeys(codes))
        self.matching: Callable[[str], tuple[str, ...]] = lru_cache(_REMEMBERED)(self._matching)
        self._aliases = aliases or {}
        self._tags = {code: tag for code in self.codes if (tag := parse_tag(code)) is not None}
        self._folded: dict[str, list[str]] = {}
        for code in self.codes:
            self._folded.setdefault(fold(code), []).append(code)
        self._any_language = any_language

    def resolve(self, asked: str, field: str) -> str:
        """The model's own code for a language. Raises InvalidRequest, naming `field`, where there is none or
        no single one."""
        found = self.matching(asked)
        if len(found) != 1:
            raise InvalidRequest(self.refusal(asked, found), field=field)
        return found[0]

    def refusal(self, asked: str, found: Sequence[str] = ()) -> str:
        """Why a name is refused: it means all of `found`, or, without them, nothing."""
        if found:
            return f"{asked!r:.40} may be each of {', '.join(map(self.described, found))}: name one of them"
        near = self.nearest(asked)
        if len(self.codes) > LISTED and near:
            which = ", ".join(map(self.described, near))
            return f"{asked!r:.40} is not one of this model's {len(self.codes)} languages; nearest: {which}"
        listed = ", ".join(sorted(self.codes)[:LISTED])
        if len(self.codes) > LISTED:
            listed += f" and {len(self.codes) - LISTED} more, which /languages lists if they are translated"
        return f"{asked!r:.40} is not one of this model's languages: {listed}"

    def nearest(self, asked: str) -> list[str]:
        """The model's codes of languages near to one that it lacks, of a country's language ("jp"), or of
        languages with a similar name."""
        from langcodes.data_dicts import LANGUAGE_DISTANCES

        ranks: dict[str, int] = {}
        folded = fold(asked[:LONGEST_NAME])
        wanted = parse_tag(folded) or named_tag(folded) or unqualified_tag(folded)
        if wanted is not None:
            distances = LANGUAGE_DISTANCES.get(wanted.language, {})
            for code, tag in self._tags.items():
                kinship = (
                    tag.language == wanted.language,
                    tag.language == broader(wanted),
                    broader(tag) in (wanted.language, broader(wanted)),
                    distances.get(tag.language, _NEAR) < _NEAR,
                )
                if any(kinship):
                    ranks[code] = kinship.index(True)
        if ranks:
            return sorted(ranks, key=lambda code: ranks[code])[:_NEAREST]
        if of_country := self._meant(spoken_in(folded)):
            return list(of_country)[:_NEAREST]
        names = {**{fold(code): code for code in self.codes}, **self._by_name}
        similar = difflib.get_close_matches(folded, names, n=_NEAREST, cutoff=_SIMILAR)
        return list(dict.fromkeys(names[name] for name in similar))

    @staticmethod
    def exists(asked: str) -> bool:
        """Whether a name means a language at all, the model's or not."""
        folded = fold(asked[:LONGEST_NAME])
        tag = parse_tag(folded) or named_tag(folded)
        return tag is not None and exists(tag)

    def tag(self, code: str) -> str:
        """The shortest BCP 47 tag that means one of the model's codes and no other: "en" for eng_Latn.
        Chinese has its script where the model tells it. The code itself where there is no such tag."""
        return self._shown[code]

    def name(self, code: str) -> str:
        """A language's English name: "Chinese (Simplified)" for zho_Hans."""
        import langcodes

        return langcodes.get(self._shown[code]).display_name() if code in self._tags else code

    def described(self, code: str) -> str:
        return f"{code} ({self.name(code)})" if self.name(code) != code else code

    # -- from names to codes

    def _matching(self, asked: str) -> tuple[str, ...]:
        """The model's codes that a name means: one, several where it leaves a choice, or none."""
        if asked in self.codes:
            return (asked,)
        if not 0 < len(asked) <= LONGEST_NAME:
            return ()
        folded = fold(asked)
        if (same := self._folded.get(folded)) is not None:
            return tuple(same)
        if (code := self._aliases.get(folded)) is not None:
            return (code,)
        wanted = parse_tag(folded)
        found = self._meant(wanted)
        if not found:
            if (code := self._by_name.get(folded)) is not None:
                return (code,)
            wanted = named_tag(folded) or wanted
            found = self._meant(wanted)
        if not found and wanted is not None and self.group is not None and exists(wanted):
            return (self.group,)
        return found

    def _meant(self, wanted: LanguageTag | None) -> tuple[str, ...]:
        """The codes of a language, of its usual member where it is a macrolanguage, or of the macrolanguage
        whose usual member it is."""
        if wanted is None:
            return ()
        for part in ("alpha3", "language"):
            asked = getattr(wanted, part)
            codes = [code for code, tag in self._tags.items() if getattr(tag, part) == asked]
            if codes := self._of_region(self._of_script(codes, wanted), wanted):
                return tuple(codes)
        return ()

    def _of_script(self, codes: list[str], wanted: LanguageTag) -> list[str]:
        """The codes in the script that is wanted, else in the likely one. A code without a script is for each
        that no other code has."""
        usual, _ = likely_subtags(wanted.language, None)
        script = wanted.script or usual
        for fits in (
            lambda tag: tag.script == script and tag.said,
            lambda tag: tag.script == script != usual,
            lambda tag: tag.script in (script, None),
            lambda _: wanted.script is None,
        ):
            if there := [code for code in codes if fits(self._tags[code])]:
                return there
        return []

    def _of_region(self, codes: list[str], wanted: LanguageTag) -> list[str]:
        """The codes of the region that is wanted, else of none, else of the likely or the nearest one."""
        import langcodes

        if len(codes) < 2:
            return codes
        regions = {code: self._tags[code].region for code in codes}
        _, likely = likely_subtags(wanted.language, None)
        for region in (wanted.region, None, likely if wanted.region is None else None):
            if there := [code for code in codes if regions[code] == region]:
                one_script = len({self._tags[code].script for code in there}) == 1
                return [min(there, key=len)] if one_script else there
        if wanted.region is None:
            return codes
        asked = f"{wanted.language}-{wanted.region}"
        distances = {
            code: langcodes.tag_distance(asked, f"{wanted.language}-{region}")
            for code, region in regions.items()
        }
        return [code for code in codes if distances[code] == min(distances.values())]

    # -- from codes to names

    @cached_property
    def _shown(self) -> Mapping[str, str]:
        return {code: self._tag_of(code) for code in self.codes}

    def _tag_of(self, code: str) -> str:
        import langcodes

        tag = self._tags.get(code)
        if tag is None or (_ISO_639_1.fullmatch(code) and langcodes.tag_is_valid(code)):
            return code
        script = [tag.script] if tag.script else []
        region = [tag.region] if tag.region else []
        forms = [[], script, region, [*script, *region]]
        if tag.language == "zh":
            forms.pop(0)
        for form in forms:
            for language in dict.fromkeys((tag.language, tag.subtag, tag.alpha3)):
                shown = "-".join([language, *form])
                if shown not in self.codes and self._meant(parse_tag(shown)) == (code,):
                    return shown
        return code

    @cached_property
    def group(self) -> str | None:
        """The code that stands for every language, where there is one."""
        return next((code for code in self.codes if self._any_language and is_group(code)), None)

    @cached_property
    def _by_name(self) -> Mapping[str, str]:
        """The model's codes by their languages' English names."""
        return {fold(self.name(code)): code for code in self._tags}
