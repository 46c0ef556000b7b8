"""A document's segments: sentences where its language ends them, and all else where it was."""

from __future__ import annotations

import time

import pytest
import sentencex
from hypothesis import example, given
from hypothesis import strategies as st

from tandem.errors import InvalidRequest
from tandem.outputs import CompletionOutput, RequestOutput
from tandem.workers.requests.segmentation import abbreviations
from tandem.workers.requests.segmentation.segments import SPLITS, Document, Split, is_blank, segment, within

LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def cut(
    text: str,
    split: Split = "sentence",
    language: str | None = "en",
    *,
    words: int = 100,
    most: int = 100_000,
) -> Document:
    """With a limit in words, or in characters where there are no spaces."""
    fits = within(words, lambda part: len(part.split()) if " " in part else len(part))
    return segment(text, split, language=language, fits=fits, most=most)


@pytest.mark.parametrize(
    ("language", "text", "segments"),
    [
        ("en", "Good morning. How are you? I am fine!", ["Good morning.", "How are you?", "I am fine!"]),
        ("en", "Dr. Smith met Mr. Jones. They spoke.", ["Dr. Smith met Mr. Jones.", "They spoke."]),
        ("en", "It costs 3.50 euros. Or 1,000.25.", ["It costs 3.50 euros.", "Or 1,000.25."]),
        ("en", "See http://a.com/a.b?c=1. It is good.", ["See http://a.com/a.b?c=1.", "It is good."]),
        ("en", "Mail me@example.com. Now.", ["Mail me@example.com.", "Now."]),
        ("en", "Wait... what? Yes.", ["Wait... what?", "Yes."]),
        ("en_XX", "The U.S. is big. Very big.", ["The U.S. is big.", "Very big."]),
        ("de", "Das ist z. B. gut. Am 3. Mai kam er.", ["Das ist z. B. gut.", "Am 3. Mai kam er."]),
        ("deu_Latn", "Herr Dr. Meier kommt. Er ist da.", ["Herr Dr. Meier kommt.", "Er ist da."]),
        ("fr", "Bonjour ! Comment vas-tu ? Bien.", ["Bonjour !", "Comment vas-tu ?", "Bien."]),
        ("es", "¿Qué tal? ¡Muy bien! Adiós.", ["¿Qué tal?", "¡Muy bien!", "Adiós."]),
        ("ru", "Привет. Как дела? Хорошо.", ["Привет.", "Как дела?", "Хорошо."]),
        ("zh", "你好。你好吗？我很好！", ["你好。", "你好吗？", "我很好！"]),
        ("zho_Hans", "他说：“走吧。”我们走了。", ["他说：“走吧。”", "我们走了。"]),
        ("ja", "こんにちは。元気ですか？はい、元気。", ["こんにちは。", "元気ですか？", "はい、元気。"]),
        ("ko", "안녕하세요. 잘 지내요? 네.", ["안녕하세요.", "잘 지내요?", "네."]),
        ("ar", "كيف حالك؟ أنا بخير. شكرا.", ["كيف حالك؟", "أنا بخير.", "شكرا."]),
        ("hi", "आप कैसे हैं? मैं ठीक हूँ। धन्यवाद।", ["आप कैसे हैं?", "मैं ठीक हूँ।", "धन्यवाद।"]),
        ("hin_Deva", "यह ठीक है। वह भी।", ["यह ठीक है।", "वह भी।"]),
        ("hy", "Բարև։ Ինչպե՞ս ես։", ["Բարև։", "Ինչպե՞ս ես։"]),
        ("urd_Arab", "یہ اچھا ہے۔ وہ بھی۔", ["یہ اچھا ہے۔", "وہ بھی۔"]),
        ("khm_Khmr", "ខ្ញុំសុខសប្បាយ។ អ្នកសុខទេ?", ["ខ្ញុំសុខសប្បាយ។", "អ្នកសុខទេ?"]),
        ("mya_Mymr", "ကျွန်တော် ကောင်းပါတယ်။ နေကောင်းလား။", ["ကျွန်တော် ကောင်းပါတယ်။", "နေကောင်းလား။"]),
        ("pl", "Dzień dobry. Jest np. dobrze.", ["Dzień dobry.", "Jest np. dobrze."]),
        ("fr", "M. Dupont est là. Il parle avec M. Martin.",
         ["M. Dupont est là.", "Il parle avec M. Martin."]),
        ("fra_Latn", "Mlle. Petit fait 10 m. Elle part.", ["Mlle. Petit fait 10 m.", "Elle part."]),
        ("pl", "Dr. Nowak i inż. Kowalski, tj. oni. Tak.",
         ["Dr. Nowak i inż. Kowalski, tj. oni.", "Tak."]),
        ("pt", "Av. Paulista, n.º 5. Fim.", ["Av. Paulista, n.º 5.", "Fim."]),
        ("hi", "डॉ. शर्मा आए। ठीक है।", ["डॉ. शर्मा आए।", "ठीक है।"]),
        ("ro", "Dl. Popescu e aici. Da.", ["Dl. Popescu e aici.", "Da."]),
        ("sv", "T.ex. detta är bra. Ja.", ["T.ex. detta är bra.", "Ja."]),
        ("ru", "Это т. е. так. Да.", ["Это т. е. так.", "Да."]),
        ("de", "Die Fa. Meier kommt. Gut.", ["Die Fa. Meier kommt.", "Gut."]),
        ("en", "The price is approx. 5 dollars. Ok.", ["The price is approx. 5 dollars.", "Ok."]),
        ("en", "It is on max. Turn it down.", ["It is on max.", "Turn it down."]),
        ("ja", "彼は「行く。」と言った。私も。", ["彼は「行く。」と言った。", "私も。"]),
        ("pl", "Zobacz onet.pl. Potem wróć.", ["Zobacz onet.pl.", "Potem wróć."]),
        ("xx", "One. Two.", ["One.", "Two."]),
        (None, "One. Two.", ["One.", "Two."]),
        ("en", '"Stop!" he said. Then he left.', ['"Stop!" he said.', "Then he left."]),
        ("en", 'He said: "I am tired. I go home." Dr. X did (too. Really).',
         ['He said: "I am tired.', 'I go home."', "Dr. X did (too.", "Really)."]),
        ("fr", "« Stop ! » dit-il. « Je pars. Adieu. »", ["« Stop ! » dit-il.", "« Je pars.", "Adieu. »"]),
        ("ja", "「行こう。早く。」と言った。「はい」", ["「行こう。", "早く。」と言った。", "「はい」"]),
        ("en", "1. Tea. 2. Coffee, 3.", ["1. Tea.", "2. Coffee, 3."]),
        ("en", "I am happy. 😀 Really. ...", ["I am happy.", "😀 Really. ..."]),
        ("en", "…", []),
        ("en", "😀 👍🏽", []),
        ("en", "?!", []),
        ("en", "Total:\n1,000.50\n---\n10:30 a.m.", ["Total:", "10:30 a.m."]),
        ("en", "no mark at the end", ["no mark at the end"]),
    ],
)  # fmt: skip
def test_sentences_of_a_language(language: str | None, text: str, segments: list[str]) -> None:
    document = cut(text, language=language)
    assert list(document.segments) == segments
    assert document.join(segments) == text


def test_lines_stay_one_for_one() -> None:
    text = "\ufeff\n  One. Two.\r\n\r\n\tThree\u2028Four\x0bFive\x85Six  \n\n"
    document = cut(text)
    assert document.segments == ("One.", "Two.", "Three", "Four", "Five", "Six")
    assert document.gaps == ("\ufeff\n  ", " ", "\r\n\r\n\t", "\u2028", "\x0b", "\x85", "  \n\n")
    assert document.join([s.upper() for s in document.segments]) == text.upper()
    by_line = cut(text, "line")
    assert by_line.segments == ("One. Two.", "Three", "Four", "Five", "Six")
    assert cut(text, "none") == Document((text,), ("", ""))


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "   ", "\r\n\t\n", "\u3000\xa0", "\u200b", "\ufeff", "\u200e \u2028"]
)
def test_a_blank_text_has_no_segment(text: str) -> None:
    assert is_blank(text)
    for split in SPLITS:
        document = cut(text, split)
        assert document == Document((), (text,))
        assert document.join([]) == text
        answer = document.output(text, [], samples=2)
        assert [(one.text, one.finish_reason, one.token_ids) for one in answer.outputs] == [
            (text, "stop", [])
        ] * 2


@pytest.mark.parametrize(
    ("text", "translations", "joined"),
    [
        ("你好。你好吗？", ["Hello.", "How are you?"], "Hello. How are you?"),
        ("你好。\n\n你好吗？好。", ["Hello.", "How are you?", "Fine."], "Hello.\n\nHow are you? Fine."),
        ("Hello. How are you?", ["你好。", "你好吗？"], "你好。你好吗？"),
        ("Hello.  How are you?\tFine.", ["你好。", "你好吗？", "好。"], "你好。你好吗？\t好。"),
        ("Hello.\nHow are you?", ["你好。", "你好吗？"], "你好。\n你好吗？"),
        ("こんにちは。元気？", ["你好。", "好吗？"], "你好。好吗？"),
        ("Hello.  How are you?", ["Hallo.", "Wie geht's?"], "Hallo.  Wie geht's?"),
        ("Hello. How are you?", ["안녕하세요.", "잘 지내요?"], "안녕하세요. 잘 지내요?"),
        ("Hello. How are you?", ["สวัสดี", "สบายดีไหม"], "สวัสดี สบายดีไหม"),
        ("  Hello. \n", [" Hallo. "], "  Hallo. \n"),
        ("Hello. How are you?", ["", "Wie geht's?"], " Wie geht's?"),
    ],
)
def test_translations_are_spaced_as_their_language_is(
    text: str, translations: list[str], joined: str
) -> None:
    assert cut(text, language=None).join(translations) == joined


def test_a_sentence_that_is_too_long_is_cut_where_it_hurts_least() -> None:
    long = "he came; she saw the house, the tree, and the dog that slept; they all went home at last"
    parts = cut(long, words=8).segments
    assert " ".join(parts) == long
    assert all(len(part.split()) <= 8 for part in parts)
    assert [part[-1] for part in parts[:-1]] == [",", ";"]
    assert cut("word " * 64, words=8).segments == ("word " * 7 + "word",) * 8
    quoted = cut('"I came. I saw. I left." ' * 2, words=6).segments
    assert all(len(part.split()) <= 6 for part in quoted)
    chinese = "我喜欢苹果，他喜欢梨子，她喜欢葡萄，我们都喜欢水果"
    parts = cut(chinese, language="zh", words=14).segments
    assert "".join(parts) == chinese
    assert [part[-1] for part in parts[:-1]] == ["，"] * (len(parts) - 1)
    assert cut(chinese, language="zh", words=14).join(["a"] * len(parts)) == " ".join(["a"] * len(parts))
    one_word = "x" * 1000
    parts = cut(one_word, words=300).segments
    assert cut(one_word, words=300).join(parts) == one_word, "no space within a word"
    assert cut("10,000.50 at 10:30, on 1/2/3", words=3).segments == ("10,000.50 at 10:30,", "on 1/2/3")


def test_sentences_of_a_line_are_packed() -> None:
    text = "We came here. They left. Nobody saw us go. Fine. All over, and so it goes on. Yes.\nYou too.\n"
    assert cut(text, "line", words=6).segments == (
        "We came here. They left.", "Nobody saw us go. Fine.", "All over,", "and so it goes on.", "Yes.",
        "You too.",
    )  # fmt: skip
    assert cut(text, "line", words=100).segments == tuple(text.splitlines())
    assert cut("你好。你好吗？我很好！", "line", "zh", words=7).segments == ("你好。你好吗？", "我很好！")


@given(st.lists(st.integers(1, 9), max_size=60), st.integers(9, 30))
def test_no_sentence_stands_apart_that_fits_to_the_one_before(lengths: list[int], most: int) -> None:
    sentences = [f"Some{' word' * (length - 1)}." for length in lengths]
    packed = cut(" ".join(sentences), "line", words=most).segments
    words = [len(part.split()) for part in packed]
    assert sum(words) == sum(lengths)
    assert all(many <= most for many in words)
    firsts = [len(part.split(".")[0].split()) for part in packed]
    assert all(many + first > most for many, first in zip(words, firsts[1:], strict=False))


def test_characters_are_not_torn_apart() -> None:
    family = "👩\u200d👩\u200d👧\u200d👦"
    for parts in (cut(f"{family}b" * 4, words=16).segments, cut("e\u0301" * 9, words=4).segments):
        assert all(part[0] not in "\u200d\u0301" and part[-1] != "\u200d" for part in parts)
        assert len(parts) > 1
    marks = "e" + "\u0301" * 500
    assert cut(marks, words=3).join(cut(marks, words=3).segments) == marks


_PARTS = [
    *LINE_ENDS, *" \t\xa0\u3000.!?。？！…,;:，、\"'“”()«»-–*1aZééя好あ한ไ؟।\u200b\u200d\u0301😀",
    "\r\n", "Dr. ", ". A", "http://a.b/c ", "**", ".** ", "etc. ", "5. ", ".-C. ",
]  # fmt: skip
TEXTS = st.lists(
    st.one_of(st.sampled_from(_PARTS), st.characters(exclude_categories=["Cs"])), max_size=80
).map("".join)


@given(
    TEXTS, st.sampled_from(SPLITS), st.sampled_from([None, "en", "de", "zh", "ja", "ar", "hi", "th"]),
    st.integers(1, 30),
)  # fmt: skip
@example("a\r\n", "line", "en", 1)
@example('"A. B.\n"C. "', "sentence", "en", 30)
def test_what_is_joined_unchanged_is_the_text(
    text: str, split: Split, language: str | None, most: int
) -> None:
    def fits(part: str) -> bool:
        return len(part) <= most

    document = segment(text, split, language=language, fits=fits, most=1000)
    assert "".join(a + b for a, b in zip(document.gaps, (*document.segments, ""), strict=True)) == text
    assert document.join(document.segments) == text or split == "none"
    assert not any(map(is_blank, document.segments))
    if split != "none":
        assert all(part == part.strip() and fits(part) for part in document.segments)
        assert not any(end in part for part in document.segments for end in LINE_ENDS)


def test_long_documents() -> None:
    sentence = "The quick brown fox, which is quick, jumps over the lazy dog. "
    text = sentence * (200_000 // len(sentence))
    assert set(cut(text).segments) == {sentence.strip()}
    text = "no mark " * 25_000
    document = cut(text)
    assert document.join(document.segments) == text
    assert max(len(part.split()) for part in document.segments) <= 100
    for mark in ('"', "(", "“", "*", ".", "'", "1. ", "a)"):
        text = mark * (30_000 // len(mark))
        document = cut(text)
        assert document.join(document.segments) == text
    with pytest.raises(InvalidRequest, match="has more than 9 segments; send it in parts") as caught:
        cut("One. " * 10, most=9)
    assert caught.value.field == "prompt"
    assert len(cut("One. " * 9, most=9).segments) == 9


def test_time_grows_with_the_length_whatever_is_repeated() -> None:
    """Against twice the time in a text of the length: eight times the length takes sixty-four times as long
    where each mark of a run is the beginning of another look at the rest of it."""

    def seconds(text: str) -> float:
        begun = time.thread_time()
        cut(text, "line")
        return time.thread_time() - begun

    marks = "\"'”’»)]」』】）。.!?…，,;:—- \tx„“«(*"
    for repeated in dict.fromkeys([*marks, *(f"{mark})" for mark in marks), *(f"]{mark}" for mark in marks)]):
        short, long = (min(seconds(repeated * count) for _ in range(2)) for count in (500, 4000))
        assert long < 24 * max(short, 1e-4), repeated


@pytest.mark.parametrize(
    "repeated", ["M.", "M. ", "a.", "A. a", "x", "x" * 900 + ". ", "x " * 900 + ". ", ".\u200d"]
)
def test_the_segmenter_reads_a_text_a_few_times(monkeypatch: pytest.MonkeyPatch, repeated: str) -> None:
    read = 0

    def counted(language: str, text: str) -> list[str]:
        nonlocal read
        read += len(text)
        return sentences_of(language, text)

    sentences_of = sentencex.segment
    monkeypatch.setattr(sentencex, "segment", counted)
    text = repeated * (40_000 // len(repeated))
    for language in ("en", "ru", "de"):
        cut(text, language=language)
    assert read <= 3 * 6 * len(text)


def test_no_sentence_ends_at_an_abbreviation() -> None:
    for language, words in abbreviations._ABBREVIATIONS.items():
        for word in words.split():
            name, follows = word.rstrip("#%"), "5" if "#" in word else "xa" if "%" in word else "Xa"
            for written in (name.replace("~", " "), name.replace("~", "")):
                text = f"1 {written}. {follows} 2."
                assert cut(text, language=language).segments == (text,), (language, word)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("pt", "Há pão, leite, etc. para todos. | O Dr. Lima, p. ex., veio. | Temos pão, etc. | Fim."),
        ("pt", "Foi em 50 a. C. e passou. | Depois foi em 50 d.C. | Acabou."),
        ("id", "Ada roti, susu, dll. untuk semua. | Ada roti, dll. | Selesai."),
        ("pl", "W 2020 r. padało. | To był 2020 r. | Potem nic."),
        ("sr_Cyrl", "Има д.о.о. у граду, итд. за све. | Крај."),
        ("de", "Er wohnt im 3. Stock. | Der 2. Weltkrieg war lang. | Ich habe 2. | Du hast 3."),
        ("fi", "Hän tuli 5. toukokuuta. | Niitä on 5. | Hyvä."),
        ("hu", "2020. május 5. volt az. | Ez 5. | Jó."),
        ("nb", "Det var den 17. mai. | Jeg har 5. | Han har 6."),
        ("en", "I have 5. | you have 6. | Approx. five, on Mon. morning."),
        ("fr", "J.-P. Sartre écrit. | En 50 av. J.-C. il vint. | C'était en 50 av. J.-C. | César vint."),
        ("fr", "- Oui. | -Non."),
        ("en", "**Bold.** | Next one. | _It is._ | `Yes.` | So. | * An item"),
    ],
)
def test_where_sentences_end_that_have_stops_within(language: str, text: str) -> None:
    sentences = tuple(text.split(" | "))
    assert cut(" ".join(sentences), language=language).segments == sentences


def output(text: str, ids: list[int], reason: str = "stop", score: float | None = None) -> RequestOutput:
    sample = CompletionOutput(0, text, ids, reason, score=score)  # type: ignore[arg-type]
    return RequestOutput("r", None, ids, None, [0], [sample])


def test_the_answers_to_segments_make_one() -> None:
    text = "One.\nTwo. "
    document = cut(text)
    whole = document.output(text, [output("Eins.", [5, 1]), output("Zwei.", [6, 1], "length")])
    (sample,) = whole.outputs
    assert (whole.encoder_prompt, sample.text) == (text, "Eins.\nZwei. ")
    assert (sample.token_ids, sample.finish_reason, sample.score) == ([5, 1, 6, 1], "length", None)
    alone = output("Eins.", [5, 1], score=-0.5)
    assert cut("One.").output("One.", [alone]) is alone
    assert cut(" One.").output(" One.", [alone]).outputs[0].score == -0.5
