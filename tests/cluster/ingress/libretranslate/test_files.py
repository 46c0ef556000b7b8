"""Files of every kind: what is text is translated, the rest stays."""

from __future__ import annotations

import zipfile
from io import BytesIO
from random import Random

import pytest
from lxml import etree

from tandem.cluster.ingress.http.libretranslate.files import Translatable, read_file
from tandem.errors import InvalidRequest


def upper(name: str, data: bytes) -> bytes:
    file: Translatable = read_file(name, data)
    return file.render([[piece.text if piece.kept else piece.text.upper() for piece in phrase.pieces]
                        for phrase in file.phrases])  # fmt: skip


TIMES = "00:00:01,000 --> 00:00:02,000"
SRT = """1
00:00:01,000 --> 00:00:02,500
Hello, <i>my friend</i>.

2
00:00:03,000 --> 00:00:05,000 X1:10 X2:20
A line
and its end & more

3
00:00:06,000 --> 00:00:07,000
- Who?
- Me!

4
00:00:08,000 --> 00:00:09,000
{\\an8}<b></b>

"""


@pytest.mark.parametrize(("name", "data", "expected"), [
    ("a.txt", "one\r\n\r\n  two é\n", "ONE\r\n\r\n  TWO É\n"),
    ("A.TXT", "", ""),
    ("a.html", "<p>a &amp; b</p>", "<p>A &amp; B</p>"), ("a.htm", "<p>a", "<p>A"),
    ("a.srt", SRT, SRT.replace("Hello", "HELLO").replace("my friend", "MY FRIEND")
     .replace("A line\nand its end & more", "A LINE AND ITS END & MORE").replace("Who", "WHO")
     .replace("Me!", "ME!")),
    ("a.srt", "\n\n", "\n\n"), ("a.srt", "no times\n", "no times\n"),
    # Cues without a blank line between them, and with one in their text; numbers may be a text.
    ("a.srt", f"1\n{TIMES}\na\n2\n{TIMES}\nb\n\nlate\n1999\n{TIMES}\n1999\n\n3\n{TIMES}\nc",
     f"1\n{TIMES}\nA\n2\n{TIMES}\nB\n\nLATE\n1999\n{TIMES}\n1999\n\n3\n{TIMES}\nC"),
    ("a.srt", f"title\n{TIMES}\na --> b\n{TIMES}\nx < y and y > z\n",
     f"title\n{TIMES}\nA --> B\n{TIMES}\nX < Y AND Y > Z\n"),
    ("a.txt", "name\tvalue\nfoo  bar\n\n    code\x0b \xa0x", "NAME\tVALUE\nFOO  BAR\n\n    CODE\x0b \xa0X"),
])  # fmt: skip
def test_texts(name: str, data: str, expected: str) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert upper(name, data.encode(encoding)).decode(encoding) == expected


def test_a_line_of_a_text_stays_one() -> None:
    file = read_file("a.txt", b"a\r\nb")
    assert file.render([["x\ny\r\n"], ["\tz\u2028"]]) == b"x y\r\nz"


def test_tags_that_never_end_take_no_longer() -> None:
    for text in ("<b " * 8_000, "Hi " + "{\\" * 8_000, "word " * 8_000, "</b><i>" * 2_000):
        made = upper("a.srt", f"1\n{TIMES}\n{text}\n".encode()).decode()
        assert "".join(made.split()).casefold() == "".join(f"1{TIMES}{text}".split()).casefold()


def test_html_in_the_charset_that_it_says() -> None:
    page = '<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1"><p>é€</p>'
    made = upper("a.html", page.replace("€", "&euro;").encode("latin-1"))
    assert made.decode("cp1252").endswith("<p>É€</p>"), "browsers read Latin 1 as its successor"
    greek = upper("a.html", b"<meta charset=iso-8859-7><p>\xe1\xe2 &#8986;")
    assert greek.endswith(b"<p>\xc1\xc2 &#8986;")
    for label in ("utf-16", "UTF-16LE", "unicode", "utf8"):  # a page that says so in ASCII is in UTF-8
        utf8 = f"<meta charset={label}><p>é".encode()
        assert upper("a.html", utf8) == utf8[:-2] + "É".encode()
    assert upper("a.html", b'<meta charset="utf-8"><p>\xc3\xa9').decode().endswith("É")


def test_subtitles_are_wrapped() -> None:
    words = " ".join(["word"] * 30)
    source = f"1\r\n00:00:01,000 --> 00:00:02,000\r\n{words[:60]}\r\n{words[60:]}\r\n\r\n"
    made = upper("a.srt", source.encode()).decode()
    lines = made.split("\r\n")[2:-2]
    assert 1 < len(lines) <= 3
    assert max(map(len, lines)) <= 76
    assert " ".join(lines) == " ".join(words.upper().split())


@pytest.mark.parametrize(("name", "data", "message"), [
    ("a.exe", b"", "file format not supported"), ("a", b"", "file format not supported"),
    ("a.txt", b"\xff\xfea", "is not UTF-16"), ("a.txt", b"caf\xe9", "is not UTF-8: save it as UTF-8"),
    *(("a.html", f"<meta charset={label}>".encode(), f"is not {label.upper()}")
      for label in ("nonsense", "undefined", "punycode", "idna", "unicode_escape", "utf-7", "rot13", "hex")),
    *((name, "ab".encode(encoding), "has NUL bytes")
      for name in ("a.txt", "a.srt", "a.html") for encoding in ("utf-16-le", "utf-16-be", "utf-32-le")),
    ("a.html", b"<meta charset=euc-kr>\xff", "is not CP949"),
    ("a.docx", b"PK", "is no Word document"), ("a.docx", b"", "is no Word document"),
])  # fmt: skip
def test_what_cannot_be_read_is_said(name: str, data: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_file(name, data)


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
MC = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" mc:Ignorable="v" xmlns:v="urn:v"'
BODY = f"""<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<w:document {W} {MC}><w:body>
<w:p><w:pPr><w:tabs><w:tab w:val="left"/></w:tabs></w:pPr>
<w:r><w:rPr><w:lang w:val="en-GB"/></w:rPr><w:t xml:space="preserve">I h</w:t></w:r><w:proofErr w:type="x"/>
<w:r><w:t xml:space="preserve">ave </w:t></w:r><w:r><w:rPr><w:b/></w:rPr><w:t>two</w:t></w:r>
<w:r><w:t xml:space="preserve"> dogs.</w:t></w:r></w:p>
<w:p><w:r><w:t>left</w:t><w:tab/><w:t>right</w:t><w:br/></w:r><w:r><w:instrText>PAGE</w:instrText></w:r></w:p>
<w:p><w:r><w:t>  </w:t></w:r><w:r><w:drawing><w:txbxContent><w:p><w:r><w:t>a &amp; b</w:t></w:r></w:p>
</w:txbxContent></w:drawing></w:r></w:p></w:body></w:document>"""


def docx(parts: dict[str, str | bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w", method) as target:
        for name, data in parts.items():
            target.writestr(name, data)
    return made.getvalue()


PARTS: dict[str, str | bytes] = {
    "[Content_Types].xml": "<x/>", "word/document.xml": BODY, "word/media/image1.png": b"\x89PNG",
    "word/header1.xml": f"<w:hdr {W}><w:p><w:r><w:t>head</w:t></w:r></w:p></w:hdr>",
    "word/styles.xml": "<s/>",
}  # fmt: skip


def test_word_documents() -> None:
    file = read_file("a.docx", docx(PARTS))
    assert [[(piece.text, piece.marked) for piece in phrase.pieces] for phrase in file.phrases] == [
        [("I have ", False), ("two", True), (" dogs.", False)],
        [("left", False)], [("right", False)], [("a & b", False)], [("head", False)],
    ]  # fmt: skip
    assert file.text == "I have two dogs.\nleft\nright\na & b\nhead"
    with zipfile.ZipFile(BytesIO(upper("a.docx", docx(PARTS)))) as made:
        assert made.namelist() == list(PARTS)
        assert all(made.read(name) == PARTS[name] for name in PARTS if isinstance(PARTS[name], bytes))
        assert made.read("word/styles.xml") == b"<s/>"
        body = made.read("word/document.xml").decode()
        assert "HEAD" in made.read("word/header1.xml").decode()
    texts = [element.text or "" for element in etree.fromstring(body.encode()).iter("{*}t")]
    assert texts == ["I HAVE ", "", "TWO", " DOGS.", "LEFT", "RIGHT", "  ", "A & B"]
    assert 'mc:Ignorable="v"' in body
    assert "<w:instrText>PAGE</w:instrText>" in body
    assert body.startswith("<?xml version='1.0' encoding='UTF-8' standalone='yes'?>")


def test_strict_and_renamed_word_documents() -> None:
    strict = BODY.replace("http://schemas.openxmlformats.org/wordprocessingml/2006/main",
                          "http://purl.oclc.org/ooxml/wordprocessingml/main")  # fmt: skip
    kind = "http://purl.oclc.org/ooxml/officeDocument/relationships/officeDocument"
    relations = f"""<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
    <Relationship Id="a" Type="x/core-properties" Target="core.xml"/>
    <Relationship Id="b" Type="{kind}" Target="/word/document2.xml"/></Relationships>"""
    parts = {"_rels/.rels": relations, "word/document2.xml": strict, "word/document.xml": "<no/>",
             "word/header1.xml": PARTS["word/header1.xml"], "other/header1.xml": "<no"}  # fmt: skip
    file = read_file("a.docx", docx(parts))
    assert file.text == "I have two dogs.\nleft\nright\na & b\nhead"
    assert read_file("a.docx", docx({"word/document2.xml": strict})).text == file.text.removesuffix("\nhead")
    formula = '<m:r xmlns:m="urn:math"><m:t>x</m:t></m:r>'
    other = docx({"word/document.xml": f"<w:d {W}><w:p><w:r><w:t>is</w:t></w:r>{formula}</w:p></w:d>"})
    assert read_file("a.docx", other).text == "is"


def test_characters_that_xml_cannot_have_are_left_out() -> None:
    file = read_file(
        "a.docx", docx({"word/document.xml": f"<w:d {W}><w:p><w:r><w:t>a</w:t></w:r></w:p></w:d>"})
    )
    with zipfile.ZipFile(BytesIO(file.render([["x\x01\x0b\ud800\uffff\ty🎉"]]))) as made:
        assert etree.fromstring(made.read("word/document.xml")).findtext(".//{*}t") == "x\ty🎉"


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_word_documents_are_refused_before_they_are_translated(method: int) -> None:
    random = Random(method)
    whole = docx({**PARTS, "word/media/image1.png": b"\x01\x02" * 300}, method)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random.choice((1, 3))):
            data[random.randrange(len(data))] = random.randrange(256)
        try:
            file = read_file("a.docx", bytes(data))
        except InvalidRequest:
            refused += 1
        else:
            assert file.render([[piece.text for piece in phrase.pieces] for phrase in file.phrases])
    assert refused > 50


def test_a_word_document_that_would_harm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "tandem.cluster.ingress.http.libretranslate.word_document"
    bomb = docx({"word/document.xml": BODY, "x": b"\0" * 2**20})
    assert len(bomb) < 2**14
    monkeypatch.setattr(f"{module}._UNPACKED", 2**20)
    with pytest.raises(InvalidRequest, match="unpacks to more than 10000 parts or 1 MiB"):
        read_file("a.docx", bomb)
    for name, message in (("_PARSED", "more than 0 MiB of text"), ("_TAGS", "more than 30 tags")):
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.{name}", 30)
            with pytest.raises(InvalidRequest, match=message):
                read_file("a.docx", docx(PARTS))
    entity = '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
    inner = f"{entity}<w:d {W}><w:p><w:r><w:t>&a;&f;x</w:t></w:r></w:p></w:d>"
    file = read_file("a.docx", docx({"word/document.xml": inner}))
    assert "root" not in file.text
    assert b"root" not in zipfile.ZipFile(BytesIO(file.render([["y"] for _ in file.phrases]))).read(
        "word/document.xml"
    )
    with pytest.raises(InvalidRequest, match=r"has no word/document\.xml"):
        read_file("a.docx", docx({"x": "y"}))
    with pytest.raises(InvalidRequest, match="is no Word document"):
        read_file("a.docx", docx({"word/document.xml": "<a"}))


def test_a_file_of_too_many_lines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.cluster.ingress.http.libretranslate.files._MOST_LINES", 3)
    for name in ("a.txt", "a.srt", "a.html"):
        assert upper(name, b"a\r\n\r\n\n")
        with pytest.raises(InvalidRequest, match="has more than 3 lines: split it"):
            read_file(name, b"a\r\n\n\n\r")
