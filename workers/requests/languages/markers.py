"""The languages that a tokenizer knows, and what it puts around a text for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A language among a tokenizer's added tokens: NLLB's "eng_Latn", mBART's "en_XX", M2M100's "__en__".
# transformers lists mBART's and M2M100's own languages, and not those that a fine-tuning added.
_CODE: Final = re.compile(r"[a-z]{2,3}_(?:[A-Z][a-z]{3}|[A-Z]{2})|__[a-z]{2,3}(?:_[A-Za-z]+)?__")
# A target among the tokens of a vocabulary, which a text begins with: Marian's ">>fra<<", MADLAD's "<2fr>"
# and "<2nan_Latn_TW>".
_TARGET: Final = re.compile(r">>([^<>\s]+)<<|<2([a-z]{2,3}(?:_[A-Z][a-z]{3})?(?:_[A-Za-z]{2,4})?)>")


@dataclass(frozen=True, slots=True)
class Language:
    token_id: int  # the target's: what the decoder's text begins with
    prefix: tuple[int, ...]  # special tokens around a source text
    suffix: tuple[int, ...]
    label_prefix: tuple[int, ...]  # special tokens around a target text, as training labels have them
    label_suffix: tuple[int, ...]

    def like(self, token_id: int) -> Language:
        """Another language of the same tokenizer, which has its own token where this one has this one's."""

        def ids(around: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(token_id if one == self.token_id else one for one in around)

        return Language(
            token_id, ids(self.prefix), ids(self.suffix), ids(self.label_prefix), ids(self.label_suffix)
        )


def languages_of(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Language]:
    """A tokenizer's languages by its own codes ("en_XX", "eng_Latn", "en"); empty where it has none.

    They are read once, because setting a tokenizer's source language for each text, as transformers does, is
    not thread-safe.
    """
    source = getattr(tokenizer, "src_lang", None)
    if source is None:
        return {}
    own: Mapping[str, int] = getattr(tokenizer, "lang_code_to_id", None) or {}
    added: dict[str, int] = {}
    for token in (*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()):
        token_id = tokenizer.convert_tokens_to_ids(token)
        if _CODE.fullmatch(token) and isinstance(token_id, int) and token_id not in own.values():
            added[token] = token_id
    found = {}
    for code, token_id in own.items() if own else list(added.items())[:1]:
        tokenizer.src_lang = code
        around = tuple(tokenizer.prefix_tokens), tuple(tokenizer.suffix_tokens)
        tokenizer.set_tgt_lang_special_tokens(code)
        found[code] = Language(
            token_id, *around, tuple(tokenizer.prefix_tokens), tuple(tokenizer.suffix_tokens)
        )
    tokenizer.src_lang = source
    if found:
        first = next(iter(found.values()))
        in_marks = all(code.startswith("__") for code in found)
        for token, token_id in added.items():
            code = token if in_marks else token.removeprefix("__").removesuffix("__")
            found.setdefault(code, first.like(token_id))
    return found


def targets_of(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, str]:
    """The tokens that choose a text's target language at its beginning, by their codes: {"fra": ">>fra<<"}.
    Empty for a model of one target, and for a tokenizer that marks languages by itself."""
    if getattr(tokenizer, "src_lang", None) is not None:
        return {}
    found = sorted(
        (token_id, match[match.lastindex or 0], token)
        for token, token_id in tokenizer.get_vocab().items()
        if token[:2] in (">>", "<2") and (match := _TARGET.fullmatch(token))
    )
    return {code: token for _, code, token in found} if len(found) > 1 else {}


def has_target(text: str) -> bool:
    """Whether a text begins with a token that chooses its target."""
    return bool(split_target(text)[0])


def split_target(text: str) -> tuple[str, str]:
    """The token that chooses a text's target, with the space after it, and the rest; "" where it has none."""
    match = _TARGET.match(text.lstrip())
    return (f"{match[0]} ", text.lstrip()[match.end() :]) if match else ("", text)
