"""The languages of short texts and of sentences."""

from __future__ import annotations

import pytest

from tandem.cluster.ingress.http.libretranslate.common_words import common_words
from tandem.cluster.ingress.http.libretranslate.detection import _identifier, detect


@pytest.mark.parametrize(("language", "texts"), [
    # The examples of LibreTranslate's and libretranslatepy's documentation are the first two.
    ("en", "Hello World|Hello!|hello|Good Morning|I am tired|How are you?|Open The Window|MY FRIEND|Yes"),
    ("it", "Ciao!|ciao|Buongiorno|Come stai?|Grazie mille|La Dolce Vita|Il cane dorme"),
    ("es", "Hola|hola!|Gracias|¿Cómo estás?|Buenos Días|Dónde está la estación|Hace calor"),
    ("de", "Hallo|Guten Tag|Danke schön|Wie geht's?|Ein Haus am See|Die Würde des Menschen ist unantastbar"),
    ("fr", "Merci|Bonjour|Bonjour le monde|Je t’aime|s'il vous plaît|Où Est La Gare|chat|Oui"),
    ("pt", "Obrigado|Olá|Bom dia|Não sei"), ("nl", "Goedemorgen|Dank je wel|De hond slaapt"),
    ("tr", "Merhaba|Günaydın|Bilmiyorum"), ("pl", "Cześć|Dzień dobry|kot"), ("hu", "Szia|Nem tudom"),
    ("ru", "Привет|Спасибо|Где вокзал"), ("uk", "Привіт|Дякую"), ("ar", "مرحبا|شكرا"), ("hi", "नमस्ते|धन्यवाद"),
    ("zh", "你好|谢谢"), ("zh-Hant", "謝謝"), ("ja", "こんにちは"), ("ko", "안녕하세요"),
])  # fmt: skip
def test_short_texts(language: str, texts: str) -> None:
    for text in texts.split("|"):
        assert next(iter(detect(text)), None) == language, text


def test_shares_are_together_one_and_nothing_says_nothing() -> None:
    for text in ("Hola", "OK", "https://example.com", "This is a sentence."):
        assert sum(detect(text).values()) == pytest.approx(1.0)
    for nothing in ("", "12 + 3", "!?", "🎉"):
        assert detect(nothing) == {}


def test_common_words_are_in_the_form_that_is_looked_up() -> None:
    words = common_words()
    assert {language for languages in words.values() for language in languages} <= set(_identifier().labels)
    assert all(word == word.lower() for word in words)
    assert words["ciao"] == {"it"}
    assert {"de", "nl"} <= words["hallo"]
