"""Names of a language as standards have them: ISO 639, BCP 47, English and other languages' names → a tag.

CLDR's data, in langcodes, say which names mean the same language, and which script or region is likely where
a name says none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

# A code in a tokenizer's marks: ">>fra<<" (Marian), "<|fr|>" (Whisper), "<2fr>" (MADLAD), "__fr__" (M2M100).
_MARKED: Final = re.compile(r">>(.+)<<|<\|(.+)\|>|<2(.+)>|__(.+)__")
# Language, or extended language after the macrolanguage that it belongs to; script, region; then variants and
# extensions, which no model tells apart.
_SUBTAGS: Final = re.compile(
    r"(?:(?:ar|kok|lv|ms|sw|uz|zh)-([a-z]{3})|([a-z]{2,3}))(?:-([a-z]{4}))?(?:-([a-z]{2}|\d{3}))?"
    r"(?:-[a-z\d]{5,8}|-\d[a-z\d]{3})*(?:-[a-z\d](?:-[a-z\d]{2,8})+)*"
)
# "Chinese (Simplified)", "Chinese, Simplified", "Chinese-Simplified", "中文（简体）"
_QUALIFIED: Final = re.compile(r"([^(),（）]+?)(?:\s*[(,（-]\s*|\s+)([^(),（）]+?)\s*[)）]?")
_ANY: Final = frozenset(["modern", "standard", "common", "general"])  # qualifiers that exclude nothing living
_DASHES: Final = str.maketrans(dict.fromkeys("_\u2010\u2011\u2012\u2013\u2014\u2212", "-"))
_LOCALE: Final = re.compile(r"([a-z]{2,3})(-[a-z]{2})?(?:\.[\w-]+)?(?:@([a-z]+))?")  # POSIX's: "en_US.UTF-8"
_LOCALE_SCRIPTS: Final[Mapping[str, str]] = {
    "latin": "-latn", "cyrillic": "-cyrl", "devanagari": "-deva", "arabic": "-arab",
}  # fmt: skip
_OLD: Final[Mapping[str, str]] = {"zh-chs": "zh-hans", "zh-cht": "zh-hant"}  # Windows' of before BCP 47
_NO_REGION: Final = "XX"  # mBART's, as in "en_XX"

# Languages that models mean by a broader code. CLDR has many of these; here it chooses others than NLLB does,
# or, for Norwegian, none.
_USUAL: Final[Mapping[str, str]] = {"nb": "no", "pbt": "ps", "quy": "qu", "fuv": "ff"}

# Scripts that are part of what a language is written in, or a style of it: NLLB has kor_Hang.
_SCRIPTS: Final[Mapping[str, str]] = {
    "Hang": "Kore", "Hira": "Jpan", "Kana": "Jpan", "Hrkt": "Jpan", "Aran": "Arab",
}  # fmt: skip

# M2M100's code of Northern Sotho, which is in no standard.
_ODD: Final[Mapping[str, str]] = {"ns": "nso"}

LONGEST_NAME: Final = 80  # characters
_SHORTEST_NAME: Final = 4  # in ASCII, where shorter names of languages are other languages' codes
_REMEMBERED: Final = 1024  # names that were asked for


@dataclass(frozen=True, slots=True)
class LanguageTag:
    alpha3: str  # ISO 639-3, "twi"; the same for each of a language's codes
    subtag: str  # BCP 47's, "tw"
    language: str  # CLDR's, "ak": that of the macrolanguage whose usual member this is
    script: str | None  # said, or meant by the region
    said: bool  # the script
    region: str | None


@lru_cache(_REMEMBERED)
def subtag_of(name: str) -> str | None:
    """The BCP 47 subtag of a language, "zh" for "Simplified Chinese"; None for what names none."""
    folded = fold(name[:LONGEST_NAME])
    tag = parse_tag(folded) or named_tag(folded)
    return None if tag is None else tag.subtag


def is_group(code: str) -> bool:
    """Whether a code names several languages: OPUS-MT's "ROMANCE", or a collection of ISO 639 as "mul" and
    "sla"."""
    import langcodes

    if (tag := parse_tag(code)) is None:
        return True
    return langcodes.get(tag.language).language_name().endswith(" languages")


def fold(name: str) -> str:
    """A name without its tokenizer's marks, a locale's encoding, case and kind of dash."""
    marked = _MARKED.fullmatch(name.strip())
    folded = (marked[marked.lastindex or 0] if marked else name).strip().casefold().translate(_DASHES)
    if ("." in folded or "@" in folded) and (locale := _LOCALE.fullmatch(folded)) is not None:
        return locale[1] + _LOCALE_SCRIPTS.get(locale[3] or "", "") + (locale[2] or "")
    return _OLD.get(folded, folded)


def parse_tag(name: str) -> LanguageTag | None:
    """A language tag's parts, aliases replaced; None for what is no tag.

    langcodes remembers all that it was asked, so it is asked for language subtags alone, which are few.
    """
    import langcodes

    match = _SUBTAGS.fullmatch(fold(name))
    if match is None:
        return None
    subtag = match[1] or match[2]
    subtag = _ODD.get(subtag, subtag)
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
        script, _ = likely_subtags(language, region)
    script = script and _SCRIPTS.get(script, script)
    return LanguageTag(alpha3, normal.language or subtag, language, script, said, region)


def named_tag(name: str) -> LanguageTag | None:
    """A language by its folded name, in English before any other language, alone or with what tells it from
    others: a script, a region, a language within it, or a word of its longer name: "serbian (latin)",
    "english (usa)", "kurdish (sorani)", "greek (modern)". None for what is no name."""
    if (tag := _language(name)) is not None:
        return tag
    qualified = _QUALIFIED.fullmatch(name)
    base = _language(qualified[1]) if qualified else None
    if qualified is None or base is None:
        return None
    qualifier = qualified[2]
    if script := _subtag("script", qualifier):
        return parse_tag(f"{base.subtag}-{script}")
    for within in (_language(qualifier), _language(f"{qualifier} {qualified[1]}")):
        if within is not None and broader(within) == broader(base):
            return within
    if territory := _subtag("territory", qualifier):
        return parse_tag(f"{base.subtag}-{territory}")
    return base if qualifier in _ANY else None


def unqualified_tag(name: str) -> LanguageTag | None:
    """The language of a folded name whose qualifier says nothing: "greek (wild)"."""
    qualified = _QUALIFIED.fullmatch(name)
    return _language(qualified[1]) if qualified else None


def broader(tag: LanguageTag) -> str:
    """The macrolanguage that a language belongs to, or itself."""
    from langcodes.data_dicts import MACROLANGUAGES

    return MACROLANGUAGES.get(tag.alpha3) or MACROLANGUAGES.get(tag.language) or tag.language


def _language(name: str) -> LanguageTag | None:
    if name.isascii() and len(name) < _SHORTEST_NAME:
        return None
    code = _subtag("language", name)
    return None if code is None else parse_tag(code)


def _subtag(kind: str, name: str) -> str | None:
    return _names(kind, "en").get(name) or _names(kind, "und").get(name)


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


def likely_subtags(language: str, region: str | None) -> tuple[str | None, str | None]:
    """The script and the region that CLDR thinks likely; None for what it does not know."""
    from langcodes.data_dicts import LIKELY_SUBTAGS

    for tag in (f"{language}-{region}", language):
        if (likely := LIKELY_SUBTAGS.get(tag)) is not None:
            _, script, territory = likely.split("-")
            return _SCRIPTS.get(script, script), territory
    return None, None


def spoken_in(territory: str) -> LanguageTag | None:
    """The likeliest language of a country, by its code or its name, folded: people write it for its language.
    None for what is no country."""
    from langcodes.data_dicts import LIKELY_SUBTAGS

    code = territory if len(territory) == 2 else _subtag("territory", territory)
    likely = LIKELY_SUBTAGS.get(f"und-{code.upper()}") if code else None
    return None if likely is None else parse_tag(likely)


def exists(tag: LanguageTag) -> bool:
    import langcodes

    return bool(langcodes.get(tag.language).is_valid())
