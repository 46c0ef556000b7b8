"""The page's files without a browser: how they are served, that they need nothing else and are valid."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from typing import Any

import httpx
import pytest
from fake_service import connected
from justhtml import JustHTML, StrictModeError

from tandem.cluster.ingress.edge.guard import Guard
from tandem.cluster.ingress.http.page.routes import FILES
from tandem.cluster.ingress.service import Service
from tandem.cluster.keys import Keys, sha256

FOLDER = files("tandem.cluster.ingress.http.page")
TEXTS = {path: FOLDER.joinpath(name).read_text(encoding="utf-8") for path, (name, _) in FILES.items()}
PAGES = ["/", "/docs"]
SCRIPTS = {path: text for path, text in TEXTS.items() if path.endswith(".js")}


def elements(path: str) -> list[Any]:
    found = list(JustHTML(TEXTS[path], sanitize=False).query("*"))
    assert len(found) > 10
    return found


def attributes(path: str) -> Iterator[tuple[str, str, str]]:
    for one in elements(path):
        for name, value in (one.attrs or {}).items():
            yield one.name, name, value or ""


async def test_every_file_is_served_as_what_it_is(http: httpx.AsyncClient) -> None:
    there = {one.name for one in FOLDER.iterdir() if not one.name.endswith((".py", "__pycache__"))}
    assert there == {name for name, _ in FILES.values()}
    for path, (name, kind) in FILES.items():
        answer = await http.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert answer.content == FOLDER.joinpath(name).read_bytes()
        plain = await http.get(path, headers={"accept-encoding": "identity"})
        assert plain.content == answer.content
        assert "content-encoding" not in plain.headers
        head = await http.head(path)
        assert (head.status_code, head.headers["etag"]) == (200, answer.headers["etag"])
        again = await http.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await http.post(path)).status_code == 405
    for other in (
        "/ui/",
        "/ui/routes.py",
        "/ui/../routes.py",
        "/ui/%2e%2e/routes.py",
        "/index.html",
    ):
        assert (await http.get(other)).status_code == 404, other


async def test_the_policy_lets_nothing_else_in(http: httpx.AsyncClient) -> None:
    for path in FILES:
        answer = await http.get(path)
        policy = {
            directive.split()[0]: directive.split()[1:]
            for directive in answer.headers["content-security-policy"].split(";")
        }
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == ["'none'"]
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == ["'self'"]
        assert policy["require-trusted-types-for"] == ["'script'"]
        assert "unsafe" not in str(policy)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_it_is_small(http: httpx.AsyncClient) -> None:
    sent = [int((await http.get(path)).headers["content-length"]) for path in FILES]
    assert sum(sent) < 40_000


@pytest.mark.parametrize("path", PAGES)
def test_it_is_valid_html(path: str) -> None:
    JustHTML(TEXTS[path], sanitize=False, strict=True)  # raises at the first error
    ids = [value for _, name, value in attributes(path) if name == "id"]
    assert len(ids) == len(set(ids))
    for element, name, value in attributes(path):
        if name in ("for", "aria-controls", "aria-labelledby", "aria-describedby", "data-of"):
            assert set(value.split()) <= set(ids), (element, name, value)
        assert not name.startswith("on"), f"an inline handler in {element}"
        assert name != "style", f"an inline style in {element}"


def test_invalid_html_is_found() -> None:
    with pytest.raises(StrictModeError):
        JustHTML("<!doctype html><html><body><p></div></p></body></html>", strict=True)


@pytest.mark.parametrize("path", PAGES)
def test_it_needs_no_other_server(path: str) -> None:
    served = {one.removeprefix("/") for one in FILES} | {"openapi.json", "./"}
    for element, name, value in attributes(path):
        if name in ("src", "href", "action", "srcset", "poster", "formaction"):
            assert value in served or value == "#main", (element, name, value)
    scripts = [one for one in elements(path) if one.name == "script"]
    assert all(one.attrs.get("src") and one.attrs.get("type") == "module" for one in scripts)
    assert not [one for one in elements(path) if one.name == "style"]


def test_scripts_and_style_need_no_other_server_either() -> None:
    for path, text in SCRIPTS.items():
        imported = re.findall(r'^import .*? from "(.*?)";', text, re.MULTILINE)
        assert len(imported) == len(re.findall(r"^\s*import\b|\bimport\(", text, re.MULTILINE)), path
        assert all(one.startswith("./") and f"/ui/{one[2:]}" in FILES for one in imported), path
        assert not re.search(r"""["'`](?:https?:)?//\w""", text), path
        assert not re.search(
            r"\b(?:eval|innerHTML|outerHTML|insertAdjacentHTML|document\.write|Function)\b", text
        ), path
    assert not re.search(r"url\(|@import", TEXTS["/ui/style.css"])
    assert re.findall(r"https?:\S*?(?=[\"'])", TEXTS["/ui/icon.svg"]) == ["http://www.w3.org/2000/svg"]


def test_scripts_name_elements_that_are_there() -> None:
    ids = {value for path in PAGES for _, name, value in attributes(path) if name == "id"}
    for path, text in SCRIPTS.items():
        lists = re.findall(r"\[((?:\"[\w-]+\",? ?)+)\]\.map\(\$\)", text)
        named = re.findall(r'\$\("([\w-]+)"\)', text) + [
            one for each in lists for one in re.findall(r'"([\w-]+)"', each)
        ]
        assert set(named) <= ids, path


def test_whatever_can_be_used_has_a_name() -> None:
    """A name that a screen reader says: a label, an own text, or an aria-label."""
    found = elements("/")
    labelled = {one.attrs["for"] for one in found if one.name == "label" and "for" in one.attrs}
    within = {id(inner) for one in found if one.name == "label" for inner in one.query("input")}
    for one in found:
        if one.name in ("input", "select", "textarea"):
            assert one.attrs.get("id") in labelled or id(one) in within, one.attrs
        if one.name in ("button", "summary", "a"):
            assert one.to_text().strip() or one.attrs.get("aria-label"), one.attrs
        if one.name == "img":
            assert "alt" in one.attrs
        if one.attrs.get("role") in ("region", "tabpanel", "tablist"):
            assert one.attrs.get("aria-label") or one.attrs.get("aria-labelledby"), one.attrs
    live = {one.attrs.get("id") for one in found if one.attrs.get("aria-live") == "polite"}
    assert live == {"translation", "heard", "seen", "written"}
    assert [one.attrs["lang"] for one in found if one.name == "html"] == ["en"]


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    values = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_stand_out(scheme: int) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for the edges of fields."""
    block = re.findall(r":root \{(.*?)\}", TEXTS["/ui/style.css"], re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", block))
    for text, ground in [
        ("ink", "back"), ("ink", "card"), ("soft", "back"), ("soft", "card"), ("accent", "back"),
        ("accent", "card"), ("on-accent", "accent"), ("ink", "accent-soft"), ("bad", "bad-soft"),
        ("bad", "back"),
    ]:  # fmt: skip
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for ground in ("back", "card"):
        assert contrast(colours["field"], colours[ground]) >= 3


async def test_it_needs_no_key_and_the_api_does(service: Service) -> None:
    service.guard = Guard(Keys(None, sha256("secret")))
    async with connected(service) as http:
        for path in FILES:
            assert (await http.get(path)).status_code == 200
            assert (await http.post(path)).status_code == 401
        for path in (
            "/openapi.json",
            "/v1/models",
            "/metrics",
            "/languages",
            "/ui/routes.py",
            "/ui",
            "/docs/",
        ):
            assert (await http.get(path)).status_code == 401, path
        described = await http.get("/openapi.json", headers={"authorization": "Bearer secret"})
        assert described.status_code == 200


async def test_a_server_may_have_none(service: Service) -> None:
    service.config = replace(service.config, ui=False)
    async with connected(service) as http:
        for path in FILES:
            assert (await http.get(path)).status_code == 404, path
        assert (await http.get("/openapi.json")).status_code == 200
    service.guard = Guard(Keys(None, sha256("secret")))
    async with connected(service) as http:
        for path in FILES:
            assert (await http.get(path)).status_code == 401, path
