"""The recipe of the quickstart reader: what it draws and where, and that it trains what transformers
and Tandem load."""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

RECIPE = Path(__file__).parents[2] / "examples" / "quickstart_ocr"
MODULES = ("data", "evaluate", "fonts", "render", "scoring", "targets", "texts", "tokenizer", "train")


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """The recipe's scripts as modules; other recipes have modules of the same names."""
    for package in ("rendercv_fonts", "pymupdf_fonts", "matplotlib"):
        if find_spec(package) is None:
            pytest.skip(f"no {package}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPE))
        before = {name: sys.modules.pop(name, None) for name in MODULES}
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES[1:]})
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sentences.tsv"
    nouns = ("dogs", "cats", "houses", "trees", "cars", "books", "tables", "rivers", "doors", "birds")
    verbs = ("see", "like", "want", "need", "have", "draw", "paint", "know", "hear", "miss", "find", "keep")
    people = ("I", "You", "We", "They", "Tom and I", "My sons", "People", "The men", "Both", "All of us")
    lines = [f"{who} {verb} {noun}.\tx" for who in people for verb in verbs for noun in nouns]
    path.write_text("\n".join([*lines, "Déjà vu.\tx"]) + "\n", encoding="utf-8")
    return path


def test_no_text_is_in_two_parts(recipe: Any, data: Path) -> None:
    rng = random.Random(0)
    parts = {part: recipe.texts.Source([data], part) for part in ("train", "dev", "test")}
    drawn = {
        part: {source.draw(rng, kind) for kind in ("numbers", "codes") for _ in range(30)}
        for part, source in parts.items()
    }
    assert not drawn["train"] & drawn["test"]
    assert not drawn["train"] & drawn["dev"]
    read = [set(source._sentences) for source in parts.values()]
    assert sum(map(len, read)) == len(set.union(*read)) == 1200, "all but the one with other characters"
    for source in parts.values():
        for _ in range(200):
            text = source.draw(rng)
            assert 0 < len(text) <= recipe.texts.LONGEST
            assert set(text) <= set(recipe.texts.CHARACTERS)


def test_fonts_have_all_characters_and_families_are_on_one_side(recipe: Any) -> None:
    seen, held_out = recipe.fonts.faces(held_out=False), recipe.fonts.faces(held_out=True)
    assert {face.family for face in held_out} == set(recipe.fonts.HELD_OUT)
    assert not {face.family for face in seen} & {face.family for face in held_out}
    assert len(seen) > 60
    assert len(held_out) > 12
    for face in {face.family: face for face in [*seen, *held_out]}.values():
        font = recipe.fonts.font(face, 20)
        absent = bytes(font.getmask("\U000f1234"))
        shapes = [bytes(font.getmask(character)) for character in recipe.texts.CHARACTERS[1:]]
        assert absent not in shapes, face
        assert all(map(any, shapes)), face


def test_characters_are_where_they_are_said_to_be(recipe: Any) -> None:
    """Between a text's words no ink is, and within them some is in each character."""
    rng = random.Random(1)
    text = " HIM  mud  #8%  gold"
    for face in recipe.fonts.faces(held_out=False)[::5]:
        line = recipe.render.render(text, face, rng, noisy=False)
        pixels = recipe.targets.Maker().pixels([line])[0].mean(0).numpy()
        edges = line.placed()
        rows = slice(12, 21)  # where a slant moves little
        paper = pixels[16, round(edges[0]) + 1]
        difference = np.abs(pixels[rows] - paper).max(0)
        for number, character in enumerate(text):
            part = difference[round(edges[number]) : max(round(edges[number + 1]), round(edges[number]) + 1)]
            if character != " ":
                assert part.max() > 0.3, (face, number)
            elif text[number - 1 : number] == " ":
                assert part[1:].min() < 0.2, (face, number)


@pytest.mark.parametrize("size", [(3000, 40), (511, 32), (512, 32), (200, 90), (40, 40), (30, 77), (1, 1)])
def test_pictures_are_placed_as_the_image_processor_does(recipe: Any, size: tuple[int, int]) -> None:
    values = recipe.render.image_processor()(Image.new("RGB", size, "white"), return_tensors="np")
    columns = np.flatnonzero(values["pixel_values"][0].max((0, 1)) > 0)
    left, width = recipe.render.place(*size)
    assert (columns[0], len(columns)) == (left, width)


def test_targets_are_the_text_and_its_places(recipe: Any, data: Path) -> None:
    rng, source, maker = random.Random(2), recipe.texts.Source([data], "train"), recipe.targets.Maker()
    fonts = recipe.fonts.faces(held_out=False)
    lines = [recipe.render.render(source.draw(rng), rng.choice(fonts), rng, noisy=True) for _ in range(24)]
    groups = recipe.targets.grouped(lines, 600, rng)
    assert sorted(id(line) for group in groups for line in group) == sorted(map(id, lines))
    for group in groups:
        batch = maker.batch(group)
        outside = batch.pixels.clone()
        outside[..., batch.begin * recipe.targets.PATCH : batch.end * recipe.targets.PATCH] = -1
        assert (outside == -1).all(), "nothing of a picture is left out"
        for number, line in enumerate(group):
            labels = batch.labels[number][batch.labels[number] != recipe.targets.IGNORED]
            assert batch.ids[number, 0] == recipe.tokenizer.IDS.start
            assert labels[-1] == recipe.tokenizer.IDS.end
            assert maker.tokenizer.decode(labels[:-1]) == line.text
            assert batch.ids[number, 1 : len(labels)].tolist() == labels[:-1].tolist()
            seen = batch.seen[number]
            for at, (begin, end) in enumerate(batch.spans[number, : len(labels) - 1].tolist()):
                assert 0 <= begin < end <= recipe.targets.POSITIONS
                found = set(seen[begin:end].tolist())
                narrow = line.placed()[at + 1] - line.placed()[at] < recipe.targets.PATCH
                assert labels[at].item() in found or narrow
            assert (batch.spans[number, len(labels) - 1 :] == 0).all()


def test_part_of_the_positions_is_encoded_as_all_of_them(recipe: Any) -> None:
    torch.manual_seed(0)
    model, maker = recipe.train.make_model(300), recipe.targets.Maker()
    line = recipe.render.render(
        "W" * 30, recipe.fonts.faces(held_out=False)[0], random.Random(3), noisy=False
    )
    batch = maker.batch([line])
    with torch.no_grad():
        expected = model.encoder(batch.pixels).last_hidden_state
        assert torch.allclose(
            recipe.train.encode(model, batch.pixels, 0, recipe.targets.POSITIONS), expected, atol=1e-5
        )
        part = recipe.train.encode(model, batch.pixels, 10, 20)
    assert part.shape == (1, 11, 256)


def test_character_errors(recipe: Any) -> None:
    errors = recipe.scoring.CharacterErrors()
    errors.add("It's $7.45, Tom", "its $7.45  Tom")
    errors.add("abc", "abc")
    assert (errors.errors, errors.characters, errors.exact, errors.lines) == (3, 18, 1, 2)
    assert recipe.scoring.distance("abcd", "acde") == 2


def test_trains_resumes_and_is_served_alike(
    recipe: Any,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(module: Any, *args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["script", "--data", str(data), *args])
        threads = torch.get_num_threads()
        module.main()
        torch.set_num_threads(threads)
        return capsys.readouterr().out

    monkeypatch.setattr(recipe.targets, "_LINES_A_ROUND", 12)
    monkeypatch.setattr(recipe.train, "DEV_LINES", 2)
    out = tmp_path / "out"
    train = ("--out", str(out), "--batch-positions", "200", "--threads", "1", "--every", "100")
    run(recipe.train, *train, "--minutes", "0.003")
    model = out / "model"
    with safe_open(model / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}  # noqa: SIM118
    assert "resumed after" in run(recipe.train, *train, "--minutes", "0.004")
    assert (model / "model.safetensors").stat().st_size < 12 * 2**20

    # What is served gives what the checkpoint's means do, through nothing but its files.
    line = recipe.render.render("Room 7", recipe.fonts.faces(held_out=True)[0], random.Random(4), noisy=False)
    read = VisionEncoderDecoderModel.from_pretrained(model, dtype=torch.float32).eval()
    mean = torch.load(out / "checkpoint.pt")["mean"]
    for name, value in read.named_parameters():
        assert torch.equal(value, mean[name].half().float()), name
    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    pixels = processor(line.image, return_tensors="pt").pixel_values
    assert torch.equal(pixels, recipe.targets.Maker().pixels([line]))
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(text := "a~  É 1")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids == recipe.targets.Maker().tokenizer(text)["input_ids"]

    # In tesseract's place: a program that reads any line as the same.
    (tmp_path / "tesseract").write_text("#!/bin/sh\ncat > /dev/null\necho abc\n")
    (tmp_path / "tesseract").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    scores = json.loads(run(recipe.evaluate, "--model", str(model), "--lines", "1"))
    assert scores["tandem"] == scores["transformers"]
    assert scores["tesseract"].keys() == scores["transformers"].keys()
    assert scores["tesseract"]["all, held out"] > 50
