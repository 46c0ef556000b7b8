"""The languages of a multilingual translation model, as its tokenizer knows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tandem.errors import InvalidRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# NLLB's tokenizer has them among its special tokens only: "eng_Latn".
_CODE: Final = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")


@dataclass(frozen=True, slots=True)
class Language:
    token_id: int  # the target's: what the decoder's text begins with
    prefix: tuple[int, ...]  # special tokens around a source text
    suffix: tuple[int, ...]
    label_prefix: tuple[int, ...]  # special tokens around a target text, as training labels have them
    label_suffix: tuple[int, ...]


def languages_of(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Language]:
    """A tokenizer's languages by its own codes ("en_XX", "eng_Latn", "en"); empty where it has none.

    They are read once, because setting a tokenizer's source language for each text, as transformers does, is
    not thread-safe.
    """
    source = getattr(tokenizer, "src_lang", None)
    if source is None:
        return {}
    codes: Mapping[str, int] = getattr(tokenizer, "lang_code_to_id", None) or {
        token: tokenizer.convert_tokens_to_ids(token)
        for token in tokenizer.all_special_tokens
        if _CODE.fullmatch(token)
    }
    found = {}
    for code, token_id in codes.items():
        tokenizer.src_lang = code
        around = tuple(tokenizer.prefix_tokens), tuple(tokenizer.suffix_tokens)
        tokenizer.set_tgt_lang_special_tokens(code)
        found[code] = Language(
            token_id, *around, tuple(tokenizer.prefix_tokens), tuple(tokenizer.suffix_tokens)
        )
    tokenizer.src_lang = source
    return found


def language(languages: Mapping[str, Language], code: str | None, field: str) -> Language | None:
    """The language of a code, or of a unique code's part before "_": "en" for "en_XX". None for None.

    Raises InvalidRequest for a code the model does not know.
    """
    if code is None:
        return None
    matching = [code] if code in languages else [c for c in languages if c.partition("_")[0] == code]
    if len(matching) != 1:
        known = sorted(matching or languages)
        raise InvalidRequest(
            f"{code[:20]!r} is not one of {len(known)} languages: {', '.join(known)}", field=field
        )
    return languages[matching[0]]
