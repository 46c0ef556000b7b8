"""`tandem generate --image`, in this process and with a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from florence import file, image, make_florence
from typer.testing import CliRunner, Result
from vision import PAIRS, Reference, make_vision, picture, png

from tandem import LLM
from tandem.cli import app


def tandem(*arguments: str, stdin: str = "", code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["generate", *arguments], input=stdin, env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(make_florence(tmp_path_factory.mktemp("florence"))), dtype="float32") as llm:
        yield llm


@pytest.fixture(params=["here", "server"])
def florence(request: pytest.FixtureRequest, loaded: LLM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command's options, with which the model answers."""
    monkeypatch.setattr("tandem.offline.LLM", lambda _: nullcontext(loaded))
    if request.param == "here":
        return []

    class Server:
        def generate_each(self, prompts: Any, params: Any, use_tqdm: bool, **options: Any) -> Any:
            return loaded.generate_each(prompts, params, use_tqdm=use_tqdm, **strip(options))

        def stream(self, prompt: Any, params: Any, **options: Any) -> Any:
            return loaded.stream(prompt, params, **strip(options))

    def strip(options: Any) -> Any:
        return {name: value for name, value in options.items() if value is not None}

    monkeypatch.setattr("tandem.client.Client", lambda *_, **__: nullcontext(Server()))
    return ["--server", "x"]


def test_every_prompt_is_about_the_image(florence: list[str], loaded: LLM, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(file(1))
    texts = ["<OD>", "What is it?", ""]
    media = {"multi_modal_data": {"image": image(1)}}
    asked: list[Any] = [{"prompt": text, **media} for text in texts]
    right = [output.outputs[0] for output in loaded.generate(asked, use_tqdm=False)]
    options = [*florence, "--image", str(path)]
    lines = tandem(*options, "--jsonl", *texts[:2]).stdout.splitlines()
    for line, text, output in zip(map(json.loads, lines), texts, right, strict=False):
        (said,) = line["outputs"]
        assert (line["prompt"], said["text"], said.get("parsed")) == (text, output.text, output.parsed)
    # A blank line is a prompt like others; standard input is not waited for.
    prompts = tmp_path / "prompts"
    prompts.write_text("".join(f"{text}\n" for text in texts))
    shown = tandem(*options, "--file", str(prompts)).stdout
    assert tandem(*options, stdin="What is it?\n").stdout == shown.splitlines()[-1] + "\n"
    greedy = ["-p", "num_beams=1", "--max-tokens", "6"]
    assert tandem(*options, *greedy, "--stream", "", "").stdout == tandem(*options, *greedy, "", "").stdout


def test_what_is_wrong_is_said_of_the_option(florence: list[str], tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.png", tmp_path / "good.png"
    bad.write_bytes(b"no image")
    good.write_bytes(file(1))
    for images, words in (
        ([bad], "InvalidRequest --image: is no image of a format that is read"),
        ([tmp_path / "none.png"], "InvalidRequest --image: cannot be read"),
        ([tmp_path], "InvalidRequest --image: is no file"),
        ([good, good], "InvalidRequest --image: a prompt of"),
    ):
        options = [part for one in images for part in ("--image", str(one))]
        for more in ([], ["--stream"]):
            assert words in tandem(*florence, *options, *more, "<OD>", "", code=1).stderr


def test_the_prompt_of_a_captioner_is_the_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_vision(tmp_path / "model", "vit-gpt2")
    reference = Reference(folder, PAIRS["vit-gpt2"].processor)
    path = tmp_path / "a.png"
    path.write_bytes(png(picture(0)))
    with LLM(str(folder), dtype="float32") as llm:
        monkeypatch.setattr("tandem.offline.LLM", lambda _: nullcontext(llm))
        (shown,) = tandem("--image", str(path), "--max-tokens", "6").stdout.splitlines()
        ids = llm.get_tokenizer()(shown, add_special_tokens=False)["input_ids"]
        assert ids == reference.generate(picture(0), max_new_tokens=6, do_sample=False)
        asked: list[Any] = []
        generate_each = llm.generate_each

        def kept(prompts: Any, *args: Any, **options: Any) -> Any:
            asked.extend(generate_each(prompts, *args, **options))
            return asked

        monkeypatch.setattr(llm, "generate_each", kept)
        tandem("--image", str(path), "--max-tokens", "6", "bi bo")
        assert asked[0].prompt == "bi bo"
