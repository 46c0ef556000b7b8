"""The page in a real browser, over the bundled models: what people do, by pointer and by keyboard, and that
nothing goes past its policy. Without a Chromium on this machine these tests are skipped, and say so."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from audio_files import wav
from chromium import chromium, needs_chromium
from fake_service import make_service
from listening_here import http_server
from local_router import LocalRouter
from PIL import Image

from tandem import LLM
from tandem.cluster.callers import Quotas
from tandem.cluster.ingress.edge.guard import Guard
from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.cluster.keys import Keys, line_of, sha256
from tandem.cluster.listening import Listening
from tandem.limits import DEFAULT_LIMITS
from tandem.quickstart_ocr import LINE
from tandem.quickstart_speech import CLIP
from tandem.workers.models.model_folder import resolve
from tandem.workers.requests.media.audio_file import read_audio
from tandem.workers.requests.request_builder import RequestBuilder

if TYPE_CHECKING:
    from playwright.async_api import Browser, ConsoleMessage, Page

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]

ENGLISH = "I am tired. Where do you live?\n\nWe want to go home."
GERMAN = "Ich bin müde. Wo lebst du?\n\nWir wollen nach Hause gehen."
SAID = "Please switch off the basement printer."
# What code sends, instead of what it is answered.
SHOWN = (
    "import types\nshown = lambda *_, json, **__: exit(print(__import__('json').dumps(json)))\n"
    "requests = types.SimpleNamespace(post=shown)"
)
READ = "Invoice 4434: $182.50, due on 3 May."
KEY = "tandem-known"
_FILE = io.BytesIO()
Image.new("RGB", (3, 2), "red").save(_FILE, "png")
PNG = _FILE.getvalue()
HEARD = "#heard[aria-busy=false]:not(:empty):not(:has(.live))"  # all of a recording
RATE = 16_000  # Hz, of the microphone


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, LLM]]:
    with LLM("quickstart") as text, LLM("quickstart-speech") as speech, LLM("quickstart-ocr") as reader:
        yield {"quickstart": text, "quickstart-speech": speech, "quickstart-ocr": reader}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    """A browser whose microphone hears the bundled clip."""
    spoken = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    spoken.write_bytes(wav(read_audio(CLIP.read_bytes(), RATE, 30.0), RATE))
    async with chromium(f"--use-file-for-fake-audio-capture={spoken}%noloop") as browser:
        yield browser


@pytest.fixture
def serve(models: dict[str, LLM]) -> Any:
    """Makes a service of one of the models."""

    def made(model: str) -> Service:
        folder = resolve(model)
        builder = RequestBuilder.load(folder, model, DEFAULT_LIMITS)
        return make_service(folder, builder, LocalRouter(models[model]._engine), DEFAULT_LIMITS)

    return made


@dataclass
class Opened:
    """A page, and what a user would not want to have happened."""

    page: Page
    base: str
    asked: list[str] = field(default_factory=list)  # every address
    complaints: list[str] = field(default_factory=list)  # the console's, and errors nobody caught

    def said(self, message: ConsoleMessage) -> None:
        """Something stands in the console."""
        if message.type == "error":
            self.complaints.append(message.text)


@asynccontextmanager
async def opened(
    browser: Browser, service: Service, path: str = "/", **context: Any
) -> AsyncIterator[Opened]:
    async with http_server(build_app(service), Listening()) as port:
        made = await browser.new_context(**context)
        made.set_default_timeout(60_000)
        page = await made.new_page()
        found = Opened(page, f"http://127.0.0.1:{port}")
        page.on("request", lambda request: found.asked.append(request.url))
        page.on("console", found.said)
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        await page.goto(found.base + path)
        try:
            yield found
        finally:
            await made.close()
        assert all(one.startswith((found.base, "blob:")) for one in found.asked), found.asked


async def done(page: Page, answer: str) -> str:
    await page.wait_for_selector(f"#{answer}[aria-busy=false]")
    return await page.inner_text(f"#{answer}")


async def violations(page: Page) -> list[str]:
    """What axe finds against WCAG and its own best practices."""
    from axe_playwright_python.async_playwright import Axe

    found = await Axe().run(page)
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found.response["violations"]]


async def test_translate(browser: Browser, serve: Any) -> None:
    async with opened(browser, serve("quickstart")) as at:
        page = at.page
        await page.wait_for_selector("#translate")
        tabs = page.get_by_role("tab")
        assert await tabs.all_inner_texts() == ["Translate", "Write", "Cluster"]
        targets = await page.locator("#target option").all_inner_texts()
        assert targets == ["German", "French"]

        # By keyboard alone: from the text to the button.
        await page.get_by_label("Text to translate").fill(ENGLISH)
        await page.get_by_label("Alternatives", exact=True).check()
        await page.get_by_label("Text to translate").press("Control+Enter")
        assert await done(page, "translation") == GERMAN
        others = await page.locator("#others li").all_inner_texts()
        assert len(others) == len(set(others)) == 3
        assert GERMAN not in others

        # Another language translates anew.
        await page.get_by_label("To", exact=True).select_option("fr")
        await page.wait_for_selector("#translation:has-text('Je suis')")
        await done(page, "translation")

        # A document comes back as one.
        with_file: Any = {"name": "note.txt", "mimeType": "text/plain", "buffer": b"I am tired."}
        async with page.expect_download() as download:
            await page.set_input_files("#document", [with_file])
        file = await download.value
        assert file.suggested_filename == "note_fr.txt"
        assert Path(await file.path()).read_text().startswith("Je suis")
        assert not at.complaints


async def ran(folder: Path, *command: str) -> str:
    """What a command prints, in a folder and with a key."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "TANDEM_API_KEY": KEY},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err
    return out.decode()


async def with_key(page: Page, panel: str) -> Page:
    """The page once it was given the key and shows the panel."""
    await page.fill("#key", KEY)
    await page.press("#key", "Enter")
    await page.wait_for_selector(f"{panel}:not([hidden])")
    return page


async def test_code_to_copy_runs(browser: Browser, serve: Any, tmp_path: Path) -> None:
    """As it stands there, but for the key."""
    service = serve("quickstart")
    service.guard = Guard(Keys(None, sha256(KEY)))
    async with opened(browser, service) as at:
        page = await with_key(at.page, "#translate")
        text = """It's "odd": $HOME `x` \\ I am tired."""
        await page.fill("#original", text)
        await page.click("#translate summary")
        await page.wait_for_selector("#translate pre")
        samples = await page.locator("#translate pre").all_inner_texts()
        names = await page.locator("#translate .sample h2").all_inner_texts()
        assert names[:2] == ["A text: curl", "A text: Python"]
        assert len(samples) == len(names) == 6
        assert not any(KEY in one for one in samples)

        async def run(*command: str) -> str:
            return await ran(tmp_path, *command)

        (tmp_path / "letter.docx").write_bytes(b"")
        whole = json.loads(await run("bash", "-c", samples[0]))["translatedText"]
        assert "müde" in whole
        assert (await run(sys.executable, "-c", samples[1])).strip() == whole
        assert (await run("bash", "-c", samples[2])).rstrip().endswith("[DONE]")
        assert "data: [DONE]" in await run(sys.executable, "-c", samples[3])
        assert "error" in await run("bash", "-c", samples[4])  # an empty file is none


async def test_transcribe(browser: Browser, serve: Any) -> None:
    async with opened(browser, serve("quickstart-speech")) as at:
        page = at.page
        await page.wait_for_selector("#transcribe")
        assert await page.get_by_role("tab").all_inner_texts() == ["Transcribe", "Cluster"]
        assert await page.is_hidden("#spoken")  # English is all there is
        assert await page.is_disabled("#transcribe .send")
        await page.set_input_files("#recording", str(CLIP))
        await page.click("#transcribe .send")
        heard = await done(page, "heard")
        assert heard.split("\n")[0] == "00:00.0"
        assert SAID in heard
        async with page.expect_download() as download:
            await page.click("#subtitles")
        file = await download.value
        assert file.suggested_filename == "clip.srt"
        text = Path(await file.path()).read_text()
        assert text.startswith("1\n00:00:00,000 --> 00:00:0")
        assert SAID in text
        assert not at.complaints


async def test_the_microphone(browser: Browser, serve: Any, tmp_path: Path) -> None:
    """By a caller who may have one call at a time, with a key of characters that no subprotocol may have."""
    key = "a/b=,(c)"
    (keys := tmp_path / "keys").write_text(line_of("acme", key, Quotas(in_flight=1)))
    service = serve("quickstart-speech")
    service.guard = Guard(Keys(str(keys), None))
    async with opened(browser, service, permissions=["microphone"]) as at:
        page = at.page
        await page.fill("#key", key)
        await page.press("#key", "Enter")
        await page.wait_for_selector("#transcribe:not([hidden])")
        at.complaints.clear()  # that a key is needed
        record = page.locator("#record")
        await record.click()
        await page.wait_for_selector("#record[aria-pressed=true]")
        # What is said stands there before the recording ends.
        await page.wait_for_selector("#heard .live:has-text('switch')")
        assert await page.inner_text("#recording-state") == "Recording …"
        assert await page.is_disabled("#transcribe .send")  # there is no recording yet
        await record.click()
        await page.wait_for_selector(HEARD)
        assert "switch" in await page.inner_text("#heard")  # a busy machine loses some of it
        assert await page.is_visible("#player")

        # One that is over before the server hears of it.
        await record.click()
        await page.wait_for_selector("#record[aria-pressed=true]")
        await record.click()
        await page.wait_for_selector("#record[aria-pressed=false]")
        await page.wait_for_timeout(500)
        assert await page.inner_text("#recording-state") == ""
        assert all("400" in one for one in at.complaints)  # it may be of no sound


async def test_why_nothing_is_heard_yet_stays_there(browser: Browser, serve: Any) -> None:
    """What is recorded is transcribed all the same."""
    service = serve("quickstart-speech")
    async with opened(browser, service, permissions=["microphone"]) as at:
        page = at.page
        await page.wait_for_selector("#transcribe:not([hidden])")
        router: Any = service._router
        router.full = True
        await page.click("#record")
        told = "Recording … What is said is not shown yet: "
        await page.wait_for_selector(f"#recording-state:has-text('{told}')")
        await page.wait_for_timeout(300)  # the connection ends
        assert (await page.inner_text("#recording-state")).startswith(f"{told}full")
        router.full = False

        # A browser that has no such thing.
        await page.click("#record")
        await page.wait_for_selector(HEARD)
        await page.evaluate("void (AudioContext = function () { throw new Error('no sound'); })")
        await page.click("#record")
        await page.wait_for_selector(f"#recording-state:has-text('{told}no sound')")
        await page.wait_for_timeout(1000)
        await page.click("#record")
        await page.wait_for_selector(HEARD)
        assert await page.inner_text("#recording-state") == ""
        assert not at.complaints


async def test_pictures(browser: Browser, serve: Any) -> None:
    """What the page asks of a model that reads images, and how it shows the answer."""
    asked: list[Any] = []
    chunks = [{"delta": {"content": one}} for one in ("A ", "red ", "square.")]
    last = {"delta": {}, "finish_reason": "length", "parsed": {"<OD>": {"labels": ["square"]}}}
    events = [json.dumps({"choices": [one]}) for one in (*chunks, last)] + ["[DONE]"]

    async def models(route: Any) -> None:
        answer = await route.fetch()
        found = await answer.json()
        found["data"][0]["capabilities"] |= {"images": True, "translation": False}
        await route.fulfill(json=found)

    async def chat(route: Any) -> None:
        asked.append(route.request.post_data_json)
        body = "".join(f"data: {one}\n\n" for one in events)
        await route.fulfill(body=body, content_type="text/event-stream")

    async with opened(browser, serve("quickstart")) as at:
        page = at.page
        await page.route("**/v1/models", models)
        await page.route("**/v1/chat/completions", chat)
        await page.reload()
        await page.wait_for_selector("#pictures:not([hidden])")
        assert await page.get_by_role("tab").all_inner_texts() == ["Read pictures", "Write", "Cluster"]
        file: Any = {"name": "red.png", "mimeType": "image/png", "buffer": PNG}
        await page.set_input_files("#picture", [file])
        assert await page.get_attribute("#preview", "alt") == "The picture red.png"
        await page.get_by_label("Question or task").fill("What is it?")
        await page.get_by_label("Question or task").press("Enter")
        text = await done(page, "seen")
        assert text.startswith("A red square.")
        assert '"labels"' in text
        assert "cut off" in await page.get_by_role("alert").inner_text()
        ((picture, question),) = [one["content"] for one in asked[0]["messages"]]
        assert picture["image_url"]["url"] == "data:image/png;base64," + b64encode(PNG).decode()
        assert question == {"type": "text", "text": "What is it?"}
        assert asked[0]["stream"] is True
        assert not at.complaints


async def test_a_picture_is_read(browser: Browser, serve: Any, tmp_path: Path) -> None:
    """By the bundled reader; the code to copy reads it, too, whatever its name and the question are."""
    service = serve("quickstart-ocr")
    service.guard = Guard(Keys(None, sha256(KEY)))
    async with opened(browser, service) as at:
        page = await with_key(at.page, "#pictures")
        name = """it's a "line" of $HOME.png"""
        (tmp_path / name).write_bytes(LINE.read_bytes())
        await page.set_input_files("#picture", str(tmp_path / name))
        await page.click("#pictures .send")
        assert await done(page, "seen") == READ
        await page.click("#pictures summary")
        await page.wait_for_selector("#pictures pre")
        curl, python = await page.locator("#pictures pre").all_inner_texts()
        answer = json.loads(await ran(tmp_path, "bash", "-c", curl))
        assert answer["choices"][0]["message"]["content"] == READ
        assert (await ran(tmp_path, sys.executable, "-c", python)).strip() == READ

        # A question arrives as it is.
        question = """What's "it": `ls` $HOME \\ …"""
        await page.fill("#question", question)
        curl, python = await page.locator("#pictures pre").all_inner_texts()
        for command in (
            ("bash", "-c", f"curl() {{ cat; }}\n{curl}"),
            (sys.executable, "-c", python.replace("import requests", SHOWN)),
        ):
            (message,) = json.loads(await ran(tmp_path, *command))["messages"]
            picture, text = message["content"]
            assert (
                picture["image_url"]["url"]
                == "data:image/png;base64," + b64encode(LINE.read_bytes()).decode()
            )
            assert text == {"type": "text", "text": question}
        # What cannot be read is said, until another panel is shown.
        at.complaints.clear()
        none: Any = {"name": "x.png", "mimeType": "image/png", "buffer": b"none"}
        await page.set_input_files("#picture", [none])
        await page.fill("#question", "")
        await page.click("#pictures .send")
        alert = page.get_by_role("alert")
        await alert.wait_for()
        assert (await alert.inner_text()).startswith(
            "What was sent is no image of a format that is read: PNG, "
        )
        await page.click("#tab-cluster")
        await page.wait_for_selector("#cluster:not([hidden])")
        assert await alert.is_hidden()


async def test_keys(browser: Browser, serve: Any) -> None:
    service = serve("quickstart")
    service.guard = Guard(Keys(None, sha256(KEY)))
    async with opened(browser, service) as at:
        page = at.page
        dialog = page.get_by_role("dialog")
        await dialog.wait_for()
        assert await dialog.get_by_role("heading").inner_text() == "A key is needed"
        assert await page.evaluate("document.activeElement.id") == "key"
        await page.keyboard.type("wrong")
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#key-title:text('not known')")
        await page.keyboard.type(KEY)
        await page.keyboard.press("Enter")
        await page.wait_for_selector("#translate:not([hidden])")
        assert await page.evaluate("sessionStorage.length") == 1
        assert await page.evaluate("localStorage.length") == 0
        assert not any(KEY in one for one in at.asked)
        assert (await page.context.cookies()) == []
        # It is asked for no more, also by the API's page.
        await page.reload()
        await page.wait_for_selector("#translate:not([hidden])")
        await page.goto(f"{at.base}/docs")
        await page.wait_for_selector(".operation")
        # Not now: the page says what is missing.
        await page.evaluate("sessionStorage.clear()")
        await page.goto(at.base)
        await dialog.wait_for()
        await page.keyboard.press("Escape")
        await page.wait_for_selector("#problem:not([hidden])")
        assert "a key is needed" in await page.inner_text("#problem")
        assert await page.is_visible("#change-key")


async def test_the_cluster(browser: Browser, serve: Any) -> None:
    async with opened(browser, serve("quickstart"), "/#cluster") as at:
        page = at.page
        await page.wait_for_selector("#engines tr")
        cells = await page.locator("#engines td").all_inner_texts()
        assert [one.strip() for one in cells] == ["engine-1", "0 of 8", "25 % of 100", "0", "0"]
        assert "Tokens a second" in await page.inner_text("#numbers")
        first = sum(one.endswith("/metrics") for one in at.asked)
        await page.wait_for_timeout(2500)
        assert sum(one.endswith("/metrics") for one in at.asked) > first
        # The tabs are one stop of the keyboard, and arrows go through them.
        await page.focus("#tab-cluster")
        await page.keyboard.press("ArrowRight")
        assert await page.evaluate("document.activeElement.id") == "tab-translate"
        await page.wait_for_selector("#translate:not([hidden])")
        await page.keyboard.press("End")
        await page.wait_for_selector("#cluster:not([hidden])")
        assert page.url.endswith("#cluster")
        assert not at.complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_everybody_can_use_it(browser: Browser, serve: Any, scheme: str) -> None:
    """axe, for which the policy is lifted, finds nothing; nothing is wider than a small phone."""
    context: dict[str, Any] = {
        "color_scheme": scheme,
        "viewport": {"width": 320, "height": 640},
        "bypass_csp": True,
    }

    async def check(page: Page) -> None:
        assert await violations(page) == []
        assert await page.evaluate("document.documentElement.scrollWidth") <= 320

    async with opened(browser, serve("quickstart"), **context) as at:
        page = at.page
        await page.wait_for_selector("#translate:not([hidden])")
        await page.fill("#original", ENGLISH)
        await page.check("#alternatives")
        await page.click("#translate .send")
        await done(page, "translation")
        for panel in ("translate", "text", "cluster"):
            await page.click(f"#tab-{panel}")
            await page.click(f"#{panel} summary")
            await check(page)
        await page.goto(f"{at.base}/docs")
        await page.wait_for_selector(".operation")
        await page.click("summary >> nth=0")
        await check(page)
    async with opened(browser, serve("quickstart-speech"), **context) as at:
        await at.page.wait_for_selector("#transcribe:not([hidden])")
        await at.page.set_input_files("#recording", str(CLIP))
        await check(at.page)


async def test_the_policy_holds(browser: Browser, serve: Any) -> None:
    """What somebody might get into the page does nothing."""
    async with opened(browser, serve("quickstart")) as at:
        page = at.page
        await page.wait_for_selector("#translate:not([hidden])")
        await page.evaluate(
            """() => {
                const script = document.createElement("script");
                try { script.src = "https://example.com/x.js"; } catch {}
                document.body.append(script);
                const image = document.createElement("img");
                image.src = "https://example.com/x.png";
                document.body.append(image);
                fetch("https://example.com/").catch(() => {});
            }"""
        )
        refused = await page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>'; return false; } catch { return true; } }"
        )
        assert refused
        await page.wait_for_timeout(200)
        assert at.complaints  # the browser says what it has refused
        at.asked[:] = [one for one in at.asked if one.startswith(at.base)]
        assert await page.locator("#original").count() == 1


async def test_a_server_that_fails_is_said(browser: Browser, serve: Any) -> None:
    service = serve("quickstart")
    service._router.full = True
    async with opened(browser, service) as at:
        page = at.page
        await page.wait_for_selector("#translate:not([hidden])")
        await page.fill("#original", "I am tired.")
        await page.click("#translate .send")
        alert = page.get_by_role("alert")
        await alert.wait_for()
        assert "Try again in" in await alert.inner_text()
        service._router.full = False
        await page.click("#translate .send")
        assert await done(page, "translation") == "Ich bin müde."
        assert await alert.is_hidden()
