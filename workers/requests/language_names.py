"""What languages are called: ISO 639, BCP 47 and English names → a model's own codes.

CLDR's data, in langcodes, say which names mean the same language, and which script or region is likely where
a name says none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Final

from tandem.errors import InvalidRequest

# A code in a tokenizer's marks: ">>fra<<" (Marian), "<|fr|>" (Whisper), "<2fr>" (MADLAD), "__fr__" (M2M100).
_MARKED: Final = re.compile(r">>(.+)<<|<\|(.+)\|>|<2(.+)>|__(.+)__")
# Language, or extended language after the macrolanguage that it belongs to; script, region; then variants and
# extensions, which no model tells apart.
_SUBTAGS: Final = re.compile(
    r"(?:(?:ar|kok|lv|ms|sw|uz|zh)-([a-z]{3})|([a-z]{2,3}))(?:-([a-z]{4}))?(?:-([a-z]{2}|\d{3}))?"
    r"(?:-[a-z\d]{5,8}|-\d[a-z\d]{3})*(?:-[a-z\d](?:-[a-z\d]{2,8})+)*"
)
_ISO_639_1: Final = re.compile(r"[a-z]{2}")
_QUALIFIED: Final = re.compile(r"([^(),]+?)(?:\s*[(,]\s*|\s+)([^(),]+)\)?")  # "Chinese (Simplified)"
_NO_REGION: Final = "XX"  # mBART's, as in "en_XX"

# Languages that models mean by a broader code. CLDR has many of these; here it chooses others than NLLB does,
# or, for Norwegian, none.
_USUAL: Final[Mapping[str, str]] = {"nb": "no", "pbt": "ps", "quy": "qu", "fuv": "ff"}

# Scripts that are part of what a language is written in, or a style of it: NLLB has kor_Hang.
_SCRIPTS: Final[Mapping[str, str]] = {
    "Hang": "Kore", "Hira": "Jpan", "Kana": "Jpan", "Hrkt": "Jpan", "Aran": "Arab",
}  # fmt: skip

_LONGEST: Final = 80  # characters of a name
_SHORTEST_NAME: Final = 4  # in ASCII, where shorter names of languages are other languages' codes
_REMEMBERED: Final = 1024  # names that were asked for
_LISTED: Final = 12  # at most so many languages are listed where one is refused and none is near
_NEAREST: Final = 5
_SIMILAR: Final = 0.75  # difflib's ratio
_NEAR: Final = 25  # CLDR's distance from which on speakers of one language do not read the other


@dataclass(frozen=True, slots=True)
class _Tag:
    alpha3: str  # ISO 639-3, "twi"; the same for each of a language's codes
    subtag: str  # BCP 47's, "tw"
    language: str  # CLDR's, "ak": that of the macrolanguage whose usual member this is
    script: str | None  # said, or meant by the region
    said: bool  # the script
    region: str | None


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
        self._tags = {code: tag for code in self.codes if (tag := _parse(code)) is not None}
        self._folded: dict[str, list[str]] = {}
        for code in self.codes:
            self._folded.setdefault(_fold(code), []).append(code)
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
        if len(self.codes) > _LISTED and near:
            which = ", ".join(map(self.described, near))
            return f"{asked!r:.40} is not one of this model's {len(self.codes)} languages; nearest: {which}"
        return f"{asked!r:.40} is not one of this model's languages: {', '.join(sorted(self.codes))}"

    def nearest(self, asked: str) -> list[str]:
        """The model's codes of languages near to one it does not have, or of a similar name."""
        from langcodes.data_dicts import LANGUAGE_DISTANCES, MACROLANGUAGES

        def broader(tag: _Tag) -> str:
            return MACROLANGUAGES.get(tag.alpha3) or MACROLANGUAGES.get(tag.language) or tag.language

        ranks: dict[str, int] = {}
        if (wanted := _parse(asked)) is not None:
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
        names = {**{_fold(code): code for code in self.codes}, **self._by_name}
        similar = difflib.get_close_matches(_fold(asked[:_LONGEST]), names, n=_NEAREST, cutoff=_SIMILAR)
        return list(dict.fromkeys(names[name] for name in similar))

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
        if not 0 < len(asked) <= _LONGEST:
            return ()
        folded = _fold(asked)
        if (same := self._folded.get(folded)) is not None:
            return tuple(same)
        if (code := self._aliases.get(folded)) is not None:
            return (code,)
        wanted = _parse(folded)
        found = self._meant(wanted)
        if not found and (len(folded) >= _SHORTEST_NAME or not folded.isascii()):
            if (code := self._by_name.get(folded)) is not None:
                return (code,)
            wanted = _named(folded) or wanted
            found = self._meant(wanted)
        if not found and wanted is not None and self.group is not None and _exists(wanted):
            return (self.group,)
        return found

    def _meant(self, wanted: _Tag | None) -> tuple[str, ...]:
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

    def _of_script(self, codes: list[str], wanted: _Tag) -> list[str]:
        """The codes in the script that is wanted, else in the likely one. A code without a script is for each
        that no other code has."""
        usual, _ = _likely(wanted.language, None)
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

    def _of_region(self, codes: list[str], wanted: _Tag) -> list[str]:
        """The codes of the region that is wanted, else of none, else of the likely or the nearest one."""
        import langcodes

        if len(codes) < 2:
            return codes
        regions = {code: self._tags[code].region for code in codes}
        _, likely = _likely(wanted.language, None)
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
        tag = self._tags.get(code)
        if tag is None or _ISO_639_1.fullmatch(code):
            return code
        script = [tag.script] if tag.script else []
        region = [tag.region] if tag.region else []
        forms = [[], script, region, [*script, *region]]
        if tag.language == "zh":
            forms.pop(0)
        for form in forms:
            for language in dict.fromkeys((tag.language, tag.subtag, tag.alpha3)):
                shown = "-".join([language, *form])
                if shown not in self.codes and self._meant(_parse(shown)) == (code,):
                    return shown
        return code

    @cached_property
    def group(self) -> str | None:
        """The code that stands for every language, where there is one."""
        return next((code for code in self.codes if self._any_language and is_group(code)), None)

    @cached_property
    def _by_name(self) -> Mapping[str, str]:
        """The model's codes by their languages' English names."""
        return {_fold(self.name(code)): code for code in self._tags}


@lru_cache(_REMEMBERED)
def subtag_of(name: str) -> str | None:
    """The BCP 47 subtag of a language, "zh" for "Simplified Chinese"; None for what names none."""
    folded = _fold(name[:_LONGEST])
    tag = _parse(folded) or _named(folded)
    return None if tag is None else tag.subtag


def is_group(code: str) -> bool:
    """Whether a code names several languages: OPUS-MT's "ROMANCE", or a collection of ISO 639 as "mul" and
    "sla"."""
    import langcodes

    if (tag := _parse(code)) is None:
        return True
    return langcodes.get(tag.language).language_name().endswith(" languages")


def _fold(name: str) -> str:
    """A name without its tokenizer's marks, case and kind of dash."""
    marked = _MARKED.fullmatch(name.strip())
    return (marked[marked.lastindex or 0] if marked else name).strip().casefold().replace("_", "-")


def _parse(name: str) -> _Tag | None:
    """A language tag's parts, aliases replaced; None for what is no tag.

    langcodes remembers all that it was asked, so it is asked for language subtags alone, which are few.
    """
    import langcodes

    match = _SUBTAGS.fullmatch(_fold(name))
    if match is None:
        return None
    subtag = match[1] or match[2]
    normal = langcodes.get(subtag)
    try:
        alpha3 = langcodes.get(subtag, normalize=False).to_alpha3()
    except LookupError:  # an alias of two letters
        try:
            alpha3 = normal.to_alpha3()
        except LookupError:
            return None
    language = normal.prefer_macrolanguage().language or subtag
    language = _USUAL.get(language, language)
    region = match[4].upper() if match[4] else normal.territory
    region = None if region == _NO_REGION else region
    script = match[3].title() if match[3] else normal.script
    said = script is not None
    if script is None and region is not None:
        script, _ = _likely(language, region)
    script = script and _SCRIPTS.get(script, script)
    return _Tag(alpha3, normal.language or subtag, language, script, said, region)


def _named(name: str) -> _Tag | None:
    """A language by its name, in English before any other language, alone or with a script or a region:
    "Serbian (Latin)"."""
    for language in ("en", "und"):
        if (code := _names("language", language).get(name)) is not None:
            return _parse(code)
    qualified = _QUALIFIED.fullmatch(name)
    code = _names("language", "en").get(qualified[1]) if qualified else None
    if qualified is None or code is None:
        return None
    subtags = (_names(kind, "en").get(qualified[2]) for kind in ("script", "territory"))
    subtag = next(filter(None, subtags), None)
    return _parse(f"{code}-{subtag}") if subtag else None


class _Names:
    """Names in one language of languages, scripts or territories. langcodes' own search takes a name for that
    of which it is the beginning: "Chinese, Traditional" for Chinese."""

    def __init__(self, kind: str, language: str) -> None:
        from language_data.names import load_trie
        from language_data.util import data_filename

        self._trie = load_trie(data_filename(f"trie/{language}/name_to_{kind}.marisa"))

    def get(self, name: str) -> str | None:
        from language_data.names import normalize_name

        found = self._trie.get(normalize_name(name)) if name.isprintable() else None  # NUL ends its keys
        return found[0].decode() if found else None


@cache
def _names(kind: str, language: str) -> _Names:
    return _Names(kind, language)


def _likely(language: str, region: str | None) -> tuple[str | None, str | None]:
    """The script and the region that CLDR thinks likely; None for what it does not know."""
    from langcodes.data_dicts import LIKELY_SUBTAGS

    for tag in (f"{language}-{region}", language):
        if (likely := LIKELY_SUBTAGS.get(tag)) is not None:
            _, script, territory = likely.split("-")
            return _SCRIPTS.get(script, script), territory
    return None, None


def _exists(tag: _Tag) -> bool:
    import langcodes

    return bool(langcodes.get(tag.language).is_valid())
