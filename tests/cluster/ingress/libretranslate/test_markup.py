"""HTML whose markup stays byte for byte."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import html as parser

from tandem.cluster.ingress.http.libretranslate.markup import Markup
from tandem.cluster.ingress.http.libretranslate.phrases import translate_phrases
from tandem.errors import InvalidRequest


def upper(source: str) -> str:
    """Every piece of text in capitals, white space as it is."""
    markup = Markup(source)
    return markup.render([[piece.text if piece.kept else piece.text.upper() for piece in phrase.pieces]
                          for phrase in markup.phrases])  # fmt: skip


@pytest.mark.parametrize(("source", "expected"), [
    ("plain", "PLAIN"),
    ("<p>Hello <b>world</b>!</p>", "<p>HELLO <b>WORLD</b>!</p>"),
    ("<P CLASS=x data-y='\"q\"' hidden>a</P>", "<P CLASS=x data-y='\"q\"' hidden>A</P>"),
    ('<a href="?a=1&b=2&copy=3" title="not">this</a>', '<a href="?a=1&b=2&copy=3" title="not">THIS</a>'),
    ("a &amp; b &lt;tag&gt; &eacute; &#233; &copy; x&nbsp;y", "A &amp; B &lt;TAG&gt; É É © X&nbsp;Y"),
    ("1 < x & 3 > 2", "1 &lt; X &amp; 3 &gt; 2"),
    ("<script>a = '<b>x</b>';</script>t", "<script>a = '<b>x</b>';</script>T"),
    ("<style>p > b {}</style>t", "<style>p > b {}</style>T"),
    ("<SCRIPT>x</SCRIPT >y", "<SCRIPT>x</SCRIPT >Y"),
    ("<p>Run <code>pip <i>install</i></code> now</p>", "<p>RUN <code>pip <i>install</i></code> NOW</p>"),
    ('<p>A <span translate="no">Tandem <b>x</b></span> b <i class="a notranslate">c</i></p>',
     '<p>A <span translate="no">Tandem <b>x</b></span> B <i class="a notranslate">c</i></p>'),
    ('<div translate=no><div>x</div>y</div>z', '<div translate=no><div>x</div>y</div>Z'),
    ("<!DOCTYPE html><!-- c --><html><head><title>t</title></head><body>b</body></html>",
     "<!DOCTYPE html><!-- c --><html><head><title>T</title></head><body>B</body></html>"),
    ("<td>cell<td>next", "<td>CELL<td>NEXT"),
    ("<ul><li>a<li>b</ul>", "<ul><li>A<li>B</ul>"),
    ("a<br>b<br/>c<img src=x alt=y>d", "A<br>B<br/>C<img src=x alt=y>D"),
    ("</b>a</i>b<b>c", "</b>A</i>B<b>C"),
    ("a<!-- c -->b", "A<!-- c -->B"),
    ("<pre>a  b\n  c\n</pre>", "<pre>A  B\n  C\n</pre>"),
    ("<svg viewBox='0 0 1 1'><text>x</text></svg>y", "<svg viewBox='0 0 1 1'><text>x</text></svg>Y"),
    ("<?xml version='1.0'?><p>a</p>", "<?xml version='1.0'?><p>A</p>"),
    ("<![CDATA[x]]>a", "<![CDATA[x]]>A"),
    ("a<b", "A<b"), ("a<div class='", "A<div class='"), ("a<!-- b", "A<!-- b"), ("a<script>b", "A<script>b"),
    ("x &#; y &#xZZ; z", "X &#; Y &#XZZ; Z".replace("&", "&amp;")),
    ("r&d", "R&amp;D"), ("r&amp", "R&amp;"), ("R&D", "R&D"),
    ("", ""), (" \n ", " \n "), ("<p></p>", "<p></p>"),
    ("<p>\r\n  a\r\n</p>", "<p>\r\n  A\r\n</p>"),
])  # fmt: skip
def test_only_text_changes(source: str, expected: str) -> None:
    assert upper(source) == expected


def test_a_phrase_is_a_sentence_with_its_marks() -> None:
    def pieces(source: str) -> list[list[tuple[str, bool]]]:
        return [[(piece.text, piece.marked) for piece in phrase.pieces] for phrase in Markup(source).phrases]

    assert pieces("<p>I <b>am <i>so</i></b> tired.<p>Yes") == [
        [("I ", False), ("am ", True), ("so", True), ("", True), (" tired.", False)],
        [("Yes", False)],
    ]
    assert [phrase.whole for phrase in Markup("<p>one\n   <b> two</b></p><pre>3\n4</pre>").phrases] == [
        "one two",
        "3",
        "4",
    ]
    assert Markup("<p>a</p><script>b</script><p>c <code>d</code></p>").text == "a\nc d"


@pytest.mark.parametrize(("source", "sentences"), [
    ("<p>I am <img src=x> tired.</p>", ["I am tired."]), ("one<wbr>two", ["onetwo"]),
    ("a <input> b <svg><text>c</text></svg> d <b/>e <math><mi>x</mi></math> f", ["a b d e f"]),
    ("a <img/> b<br>c<hr>d<br/>e", ["a b", "c", "d", "e"]),
    ("a<script>x</script> b<template><p>x</template> c", ["a b c"]),
    ("a<div translate=no>x</div>b<address>x</address>c", ["a", "b", "c"]),
])  # fmt: skip
def test_only_what_ends_a_line_ends_a_sentence(source: str, sentences: list[str]) -> None:
    assert [phrase.whole for phrase in Markup(source).phrases] == sentences


@pytest.mark.parametrize(("source", "expected"), [
    ("<ul><li translate='no'>a<li>b</ul><p>c</p>", "<ul><li translate='no'>a<li>B</ul><p>C</p>"),
    ("<ul><li translate=no>a</ul>b", "<ul><li translate=no>a</ul>B"),
    ("<ul><li translate=no>a<ul><li>b<li>c</ul>d<li>e</ul>",
     "<ul><li translate=no>a<ul><li>b<li>c</ul>d<li>E</ul>"),
    ("<p translate=no>a <b>x</b><p>b", "<p translate=no>a <b>x</b><p>B"),
    ("<div><p translate=no>a</div>b<p translate=no>c<hr>d",
     "<div><p translate=no>a</div>B<p translate=no>c<hr>D"),
    ("<tr><td translate=no>a<td>b<tr><th class=notranslate>c</table>d",
     "<tr><td translate=no>a<td>B<tr><th class=notranslate>c</table>D"),
    ("<dl><dt translate=no>a<dd>b</dl><select><option translate=no>c<option>d</select>",
     "<dl><dt translate=no>a<dd>B</dl><select><option translate=no>c<option>D</select>"),
    ("<div translate=no>a</p>b</li><p>c</div>d", "<div translate=no>a</p>b</li><p>c</div>D"),
    ("<li translate=no>a</b>b<li>c", "<li translate=no>a</b>b<li>C"),
    # What is marked again within.
    ("<html translate=no><p>a<p translate=yes>b<p>c</html>",
     "<html translate=no><p>a<p translate=yes>B<p>c</html>"),
    ("<div translate=no><div translate=yes>a</div>b</div>c",
     "<div translate=no><div translate=yes>A</div>b</div>C"),
    ("<p>a <i translate=no>b <b translate>c</b> d</i> e</p>",
     "<p>A <i translate=no>b <b translate>C</b> d</i> E</p>"),
    ("<div translate=no>a<div translate=yes>b<div translate=no>c</div>d</div>e</div>f",
     "<div translate=no>a<div translate=yes>B<div translate=no>c</div>D</div>e</div>F"),
    ("<code translate=yes>a</code><svg translate=yes>b</svg>",
     "<code translate=yes>A</code><svg translate=yes>b</svg>"),
])  # fmt: skip
def test_what_is_kept_ends_where_its_element_does(source: str, expected: str) -> None:
    assert upper(source) == expected


def test_marked_parts_of_what_is_kept_are_sentences_of_their_own() -> None:
    source = "<div translate=no>x <b translate=yes>a</b> y <b translate=yes>b</b></div>c"
    assert [phrase.whole for phrase in Markup(source).phrases] == ["a", "b", "c"]


KEPT = st.recursive(
    st.sampled_from(["in", "a b", " ", "x<y", "&amp;", "<b>in</b>", "<code>a</code>", "<kbd> in</kbd>"]),
    lambda inner: st.lists(inner, min_size=1, max_size=4).map("".join).flatmap(
        lambda body: st.sampled_from(
            [f"<b>{body}</b>", f"<p>{body}</p>", f"<span translate=no>{body}</span>"]
        )
    ),
    max_leaves=8,
)  # fmt: skip


@given(KEPT, st.sampled_from(["ina", "in", "a in b", "z"]))
def test_what_is_kept_is_in_the_output_as_it_is(source: str, said: str) -> None:
    async def translate(texts: Sequence[str]) -> list[str]:
        return [said for _ in texts]

    markup = Markup(source)
    made = markup.render(asyncio.run(translate_phrases(markup.phrases, translate)))
    tree, other = (parser.fragment_fromstring(one, create_parent="div") for one in (source, made))
    kept = ".//code | .//kbd | .//span"
    assert [parser.tostring(one, with_tail=False) for one in other.xpath(kept)] == [
        parser.tostring(one, with_tail=False) for one in tree.xpath(kept)
    ]
    assert [one.tag for one in other.iter()] == [one.tag for one in tree.iter()]


SOURCES = st.lists(
    st.sampled_from(
        ["<p>", "</p>", "<b>", "</b>", "<i a='>'>", "</i>", "<br>", "<!-- x -->", "<script>", "</script>",
         "<code>", "</code>", "text", " ", "\n", "&amp;", "&", "<", ">", "é", "<td>", "<pre>", "</pre>",
         "</", "<!", "&#", ";"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@given(SOURCES)
def test_unchanged_pieces_leave_the_source_as_it_is(source: str) -> None:
    markup = Markup(source)
    assert markup.render([[piece.text for piece in phrase.pieces] for phrase in markup.phrases]) == source


@given(st.recursive(
    st.text(alphabet="ab &<>é\xa0", max_size=5).map(lambda text: html.escape(text, quote=False)),
    lambda inner: st.lists(inner, min_size=1, max_size=4).map("".join).flatmap(
        lambda body: st.sampled_from([f"<b>{body}</b>", f"<p>{body}</p>", f'<a href="?x&amp;y">{body}</a>'])
    ),
    max_leaves=12,
))  # fmt: skip
def test_the_text_of_a_tree_is_what_a_browser_shows(source: str) -> None:
    """lxml parses both sides: the same tree, its texts in capitals."""
    tree, made = (parser.fragment_fromstring(one, create_parent="div") for one in (source, upper(source)))
    assert [element.tag for element in made.iter()] == [element.tag for element in tree.iter()]
    assert made.text_content() == tree.text_content().upper()


def test_what_is_not_complete_takes_no_longer() -> None:
    for part in ("<!--", "<a ", "<", "</", "&#", "<!", "<![CDATA[", "<script>", "<b><i>", "<p a='",
                 "<li translate=no>", "<p translate=no><div>", "<p translate=yes>", "<img>"):  # fmt: skip
        source = part * 8_000
        assert upper(source).replace("&lt;", "<").replace("&amp;", "&") == source.replace("SCRIPT", "script")
    for source in ("<pre>a</pre><pre>" + " " * 100_000 + "\nb</pre>", "<pre>" + "a " * 50_000 + "</pre>",
                   "<code>" + "<" * 100_000 + "</code>", "<div translate=no>" + "<ul></b>" * 8_000,
                   "<li translate=no><div><li>" + "<b>" * 8_000 + "<li></li>" * 8_000):  # fmt: skip
        markup = Markup(source)
        assert markup.render([[piece.text for piece in phrase.pieces] for phrase in markup.phrases]) == source


def test_a_document_of_too_many_tags_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.cluster.ingress.http.libretranslate.markup._MOST_EVENTS", 10)
    assert upper("<b>x" * 5) == "<b>X" * 5
    with pytest.raises(InvalidRequest, match="more than 10 tags and texts: send it in parts"):
        Markup("<b>x" * 6)
