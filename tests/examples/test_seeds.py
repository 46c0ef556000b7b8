"""The scripts of examples/seeds print the answers of transformers, on tiny random models."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import florence
import pytest
import torch
from image_cases import Case
from mllama import Reference, make_mllama
from models import EOS, load_reference, make_checkpoint, word_tokenizer
from PIL import Image
from transformers import AutoTokenizer
from whisper import RATE, make_whisper, sound

from tandem.media import wav

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "seeds"
# Script → a variant of `models.VARIANTS`, "whisper", "florence2" or "mllama".
SCRIPTS = {
    "aphrodite_bart.py": "bart",
    "bart_instruction.py": "bart",
    "bert2bert_summarize.py": "bert2bert",
    "bert2bert_translate.py": "bert2bert",
    "flan_t5_questions.py": "flan",
    "florence2.py": "florence2",
    "gpt2_text_generation.py": "gpt2",
    "marian_translate.py": "marian",
    "mllama.py": "mllama",
    "pegasus_summarize.py": "pegasus",
    "phi_questions.py": "phi",
    "t5_pipeline.py": "t5",
    "t5_token_stream.py": "t5",
    "t5_translate.py": "t5",
    "whisper.py": "whisper",
}
# test_seed_training.py runs these.
TRAIN = {"bert2bert_finetune.py", "bert2bert_from_configs.py", "t5_finetune.py", "t5_instructions.py"}
# What the published configs say of tasks, and the scripts count on.
TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2": {"text-generation": {"do_sample": True, "max_length": 50}},
    "t5": {
        "translation_en_to_fr": {
            "early_stopping": True,
            "max_length": 60,
            "num_beams": 4,
            "prefix": "translate English to French: ",
        }
    },
}


@pytest.fixture(scope="session")
def model(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random checkpoint, by what `SCRIPTS` calls it."""
    whisper = cache(
        lambda: make_whisper(tmp_path_factory.mktemp("whisper"), "base", max_target_positions=128)
    )
    tiny = cache(
        lambda variant: (
            make_checkpoint(tmp_path_factory.mktemp(variant), variant, task_specific_params=TASKS[variant])
            if variant in TASKS
            else checkpoint(variant)
        )
    )
    seeing = cache(
        lambda: florence.make_florence(tmp_path_factory.mktemp("florence"), max_position_embeddings=256)
    )
    llama = cache(lambda: make_mllama(tmp_path_factory.mktemp("mllama")))
    own = {"whisper": whisper, "florence2": seeing, "mllama": llama}
    return lambda variant: own[variant]() if variant in own else tiny(variant)


def test_none_is_forgotten() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"questions.py"}
    assert scripts == SCRIPTS.keys() | TRAIN
    assert SCRIPTS.keys() == ANSWERS.keys() | RUN.keys() | {"florence2.py", "mllama.py"}
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"`{script}`" in readme for script in scripts)


def answer(*, special: bool = True, **how: Any) -> Callable[[Any, Any, Mapping[str, Any]], str]:
    """What the published snippet prints: transformers' answer to the script's text."""

    def expected(model: Any, tokenizer: Any, names: Mapping[str, Any]) -> str:
        text = next(names[name] for name in ("input_text", "text", "input_raw_str") if name in names)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=special).input_ids
        (ids,) = model.generate(inputs, do_sample=False, use_cache=False, **how)
        return str(tokenizer.decode(ids[1:], skip_special_tokens=True))  # all but the start token

    return expected


def questions(model: Any, tokenizer: Any, names: Mapping[str, Any]) -> str:
    """What flan_t5_questions.py asks first."""
    expected = answer(max_new_tokens=50)
    asked = [f"{entry['premise']}: {entry['question']}" for entry in names["dataset"]]
    return "\n\n".join(f"{one}\n{expected(model, tokenizer, {'text': one})}" for one in asked)


def continued(model: Any, tokenizer: Any, ids: list[int], start: list[int], most: int) -> str:
    """The greedy answer after `start`, from which the decoder goes on; without `ids` it is decoder-only."""
    how: dict[str, Any] = {"max_new_tokens": most, "do_sample": False, "use_cache": False}
    given = torch.tensor([ids or start])
    (out,) = model.generate(given, **(how | {"decoder_input_ids": torch.tensor([start])} if ids else how))
    whole, before = (tokenizer.decode(one, skip_special_tokens=True) for one in (out, start))
    return str(whole[len(before) :])


def of_every_kind(model: Any, tokenizer: Any, names: Mapping[str, Any]) -> str:
    """What aphrodite_bart.py prints."""

    def read(side: Any, special: bool) -> tuple[str | None, list[int]]:
        text = side.get("prompt") if isinstance(side, dict) else side
        if text is None:
            return None, side["prompt_token_ids"] if side else []
        return text, tokenizer(text, add_special_tokens=special).input_ids

    lines = []
    for prompt in names["prompts"]:
        both = prompt if "encoder_prompt" in prompt else {"encoder_prompt": prompt, "decoder_prompt": None}
        encoder, ids = read(both["encoder_prompt"], special=True)
        decoder, context = read(both["decoder_prompt"], special=False)
        text = continued(model, tokenizer, ids, [EOS, *context], 20)
        lines.append(f"Encoder prompt: {encoder!r}, Decoder prompt: {decoder!r}, Generated text: {text!r}")
    return "\n".join(lines)


def alone(model: Any, tokenizer: Any, names: Mapping[str, Any]) -> str:
    """What phi_questions.py prints."""
    asked = [f"{entry['premise']}: {entry['question']}\n\nAnswer: " for entry in names["dataset"]]
    texts = [continued(model, tokenizer, [], tokenizer(one).input_ids, 50) for one in asked]
    return "\n\n".join(f"{'*' * 64}\n{text}" for text in texts)


def translations(model: Any, tokenizer: Any, names: Mapping[str, Any]) -> str:
    """What t5_pipeline.py prints first: the task's text before each sentence, its beams, its length."""
    task = dict(TASKS["t5"]["translation_en_to_fr"])
    prefix, expected = task.pop("prefix"), answer(**task)
    first, second = ["Hello World!", "How's it going?"], ["What's your name?"]
    assert names["text_en"] == " ".join(first)
    made = [[expected(model, tokenizer, {"text": prefix + one}) for one in each] for each in (first, second)]
    return str([{"translation_text": " ".join(each)} for each in made])


LONG: dict[str, Any] = {"max_new_tokens": 140}  # as many as fit into the smallest of these models
ANSWERS: dict[str, Callable[[Any, Any, Mapping[str, Any]], str]] = {
    "aphrodite_bart.py": of_every_kind,
    "bart_instruction.py": answer(
        max_length=150, min_length=40, length_penalty=2.0, num_beams=4, early_stopping=True
    ),
    "bert2bert_summarize.py": answer(max_length=60, num_beams=4, early_stopping=True),
    "bert2bert_translate.py": answer(special=False, **LONG),
    "flan_t5_questions.py": questions,
    "marian_translate.py": answer(**LONG),
    "pegasus_summarize.py": answer(max_length=50, min_length=10),
    "phi_questions.py": alone,
    "t5_pipeline.py": translations,
    "t5_token_stream.py": answer(max_new_tokens=50),
    "t5_translate.py": answer(**LONG),
}


@pytest.mark.parametrize("script", ANSWERS)
def test_prints_the_answer_of_transformers(
    model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    script: str,
) -> None:
    """On a model whose tokenizer knows the script's words."""
    folder = tmp_path / "model"
    shutil.copytree(model(SCRIPTS[script]), folder)
    words = dict.fromkeys(re.findall(r"[\w.:!?']+", (EXAMPLES / script).read_text(encoding="utf-8")))
    word_tokenizer(first=words).save_pretrained(folder)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [script, str(folder)])
    names = runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    printed = capsys.readouterr().out
    with torch.no_grad():
        expected = ANSWERS[script](load_reference(folder), AutoTokenizer.from_pretrained(folder), names)
    assert len(expected.split()) > 3
    assert expected in printed.replace("|", "")


# What cannot be compared, because it is drawn or heard → the lines it prints, at least.
RUN = {"gpt2_text_generation.py": 15, "whisper.py": 4}


@pytest.mark.parametrize("script", RUN)
def test_runs(
    model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
) -> None:
    monkeypatch.setattr(sys, "argv", [script, str(model(SCRIPTS[script]))])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= RUN[script]


def test_florence2_prints_the_answers_of_transformers(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model("florence2")
    monkeypatch.setattr(sys, "argv", ["florence2.py", str(folder)])
    names = runpy.run_path(str(EXAMPLES / "florence2.py"), run_name="__main__")
    printed = capsys.readouterr().out
    reference = florence.Reference(folder)
    for prompt, image in zip(names["prompts"], ("stop_sign", "cherry_blossom"), strict=True):
        text = prompt.get("encoder_prompt", prompt)["prompt"]
        inputs = reference.processor(text=text, images=names[image], return_tensors="pt")
        out = reference.model.generate(**inputs, max_length=65)
        (expected,) = reference.processor.batch_decode(out, skip_special_tokens=True)
        assert expected
        assert f"Generated text: {expected!r}" in printed


def test_llama_sees_as_in_transformers(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model(SCRIPTS["mllama.py"])
    monkeypatch.setattr(sys, "argv", ["mllama.py", str(folder)])
    names = runpy.run_path(str(EXAMPLES / "mllama.py"), run_name="__main__")
    printed = capsys.readouterr().out
    reference = Reference(folder)
    for prompt in names["prompts"]:
        case = Case(prompt.get("decoder_prompt") or prompt["prompt"], [names["stop_sign"]])
        ids, _ = reference.generate(case, max_new_tokens=64)
        answer = reference.processor.decode(ids, skip_special_tokens=True)
        assert f"Decoder prompt: {case.prompt!r}, Generated text: {answer!r}" in printed


def test_the_readmes_florence_runs(
    model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "Florence-2" in block]
    Image.new("RGB", (90, 60), "white").save(tmp_path / "page.png")
    monkeypatch.chdir(tmp_path)
    exec(block.replace("florence-community/Florence-2-large", str(model("florence2"))), {})
    assert set(eval(capsys.readouterr().out)["<OCR_WITH_REGION>"]) == {"quad_boxes", "labels"}


def test_the_readmes_whisper_runs(
    model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The other blocks of README.md are for the bundled model: tests/e2e/test_readme.py runs them."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "whisper" in block]
    (tmp_path / "speech.flac").write_bytes(wav(sound(0), RATE, "audio"))
    monkeypatch.chdir(tmp_path)
    exec(block.replace("openai/whisper-large-v3-turbo", str(model("whisper"))), {})
    assert len(capsys.readouterr().out.splitlines()) == 2
