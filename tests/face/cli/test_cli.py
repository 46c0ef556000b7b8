"""The `tandem` command's verbs that need no cluster, as a shell meets them."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import make_checkpoint
from multilingual import multilingual_checkpoint
from typer.testing import CliRunner, Result

from tandem import LLM
from tandem.batch import run
from tandem.cli import app
from tandem.cli.options import ClusterOptions, Placement
from tandem.kernels.cpu.ops import COMPILED
from tandem.outputs import CompletionOutput, RequestOutput, TextDelta
from tandem.workers.distributed import Group
from tandem.workers.models import layers
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.stacks import DecoderStack, EncoderStack


def tandem(*arguments: str, stdin: str | bytes = "", code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=stdin, env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result


def test_help_names_every_verb_and_teaches_by_example() -> None:
    shown = tandem("--help").stdout
    for verb in ("serve", "show", "generate", "translate", "summarize", "score", "compose", "demo"):
        assert verb in shown
        assert f"tandem {verb}" in tandem(verb, "--help").stdout, verb


def test_show_is_a_table_with_what_matters() -> None:
    shown = tandem("show", "--input-tokens", "64").stdout
    for fact in ("d_model", "encoder", "decoder", "max_new_tokens", "generation_config.json",
                 "translate English to French: ", "K/V pool", "64 in, 128 out"):  # fmt: skip
        assert fact in shown


def facts(*arguments: str) -> Any:
    return json.loads(tandem("show", *arguments, "--json").stdout)


def test_show_says_where_each_default_comes_from() -> None:
    defaults = facts()["defaults"]
    assert defaults["max_new_tokens"] == {"value": 64, "from": "generation_config.json"}
    assert defaults["temperature"] == {"value": 0.0, "from": "Tandem"}
    defaults = facts("--default", "num_beams=4", "--default", "max_new_tokens=9")["defaults"]
    assert defaults["num_beams"] == {"value": 4, "from": "server"}
    assert defaults["max_new_tokens"] == {"value": 9, "from": "server"}
    assert "num_beam" in tandem("show", "--default", "num_beam=4", code=1).stderr


def test_show_lists_the_languages(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    assert facts()["languages"] == {
        "sources": {"en": "English"},
        "targets": {"de": "German", "fr": "French"},
    }
    shown = " ".join(tandem("show").stdout.split())
    assert "from │ 1: English (en)" in shown
    assert "to │ 2: German (de), French (fr)" in shown
    many = facts(str(multilingual_checkpoint(tmp_path)))["languages"]
    assert many["sources"] == many["targets"]
    assert many["targets"]["zho_Hans"] == "Chinese (Simplified)"
    assert len(many["targets"]) > 200
    assert "from and to" in tandem("show", str(tmp_path)).stdout
    assert facts(str(checkpoint("gpt2")))["languages"] is None


def test_show_says_what_fits(checkpoint: Callable[..., Path]) -> None:
    memory = facts("--dtype", "float32", "--device", "cpu", "--kv-cache-gib", "0.5")["memory"]
    # 2 layers of 4 heads of 64 float32, keys and values.
    assert memory["self_kv_per_position"] == memory["cross_kv_per_position"] == 2 * 2 * 4 * 64 * 4
    assert memory["hidden_states_per_position"] == 256 * 4
    assert memory["pages"] == 2**29 // (32 * 4096)
    assert memory["kv_cache"] == 2**29
    assert memory["fits"]["sequences"] == memory["pages"] // (512 // 32 + 128 // 32)
    halved = facts(str(checkpoint("flan")), "--dtype", "bfloat16", "--tp", "2", "--device", "cpu")["memory"]
    assert halved["self_kv_per_position"] == 2 * 2 * (4 // 2) * 8 * (2 if COMPILED else 4)
    assert halved["ranks"] == 2


def test_show_of_a_machine_that_is_elsewhere() -> None:
    memory = facts("--device", "cuda", "--kv-cache-gib", "40")["memory"]
    assert (memory["device"], memory["dtype"], memory["page_size"]) == ("cuda", "bfloat16", 64)
    if not torch.cuda.is_available():
        assert "kv_cache_gib: must be said" in tandem("show", "--device", "cuda", code=1).stderr


@pytest.mark.parametrize(
    "variant", ["t5", "umt5", "bart", "marian", "m2m-100", "bert2bert", "gpt2", "phi", "t5gemma2"]
)
def test_show_counts_the_weights_the_engine_holds(checkpoint: Callable[..., Path], variant: str) -> None:
    folder = str(checkpoint(variant))
    memory = facts(folder, "--dtype", "float32", "--device", "cpu")["memory"]
    opened = Checkpoint(Path(folder))
    place = layers.Placement(torch.device("cpu"), torch.float32, Group())
    tied = opened.tied("decoder.output", "decoder.embedding")
    decoder = DecoderStack(opened.spec, tied, place)
    held = sum(slot.into.nbytes for slot in decoder.slots())
    assert decoder.embedding.tokens is not None
    # A tied projection is laid out again next to the embedding.
    assert memory["decoder_weights"] == held + tied * decoder.embedding.tokens.weight.nbytes
    if opened.spec.encoder is not None:
        encoder = EncoderStack(opened.spec.encoder, place)
        assert memory["encoder_weights"] == sum(slot.into.nbytes for slot in encoder.slots())
    assert "decoder weights" in tandem("show", folder).stdout


def test_show_counts_8_bit_weights() -> None:
    options = ["--dtype", "float32", "--device", "cpu"]
    whole, quantized = (facts(*options, *more)["memory"] for more in ([], ["--quantization", "int8"]))
    embedding = 4 * 4000 * 256
    # A float32 embedding, and projections of a quarter of the size with their scales.
    projections = whole["decoder_weights"] - embedding
    assert embedding + projections / 4 < quantized["decoder_weights"] < embedding + projections / 4 * 1.05
    assert quantized["encoder_weights"] < whole["encoder_weights"]
    assert (
        "quantization: goes with"
        in tandem("show", "--quantization", "int8", "--dtype", "bfloat16", code=1).stderr
    )


def test_show_of_a_decoder_alone(checkpoint: Callable[..., Path]) -> None:
    shown = facts(str(checkpoint("gpt2")), "--input-tokens", "40", "--output-tokens", "24", "--device", "cpu")
    memory = shown["memory"]
    assert shown["spec"]["encoder"] is None
    assert memory["encoder_weights"] == memory["cross_kv_per_position"] == 0
    assert memory["fits"]["sequences"] == memory["pages"] // (64 // 32), "both are in one row of pages"


def test_show_refuses_what_cannot_be_served() -> None:
    assert "ModelLoadError model: no folder" in tandem("show", "./no/such", code=1).stderr
    assert "InvalidRequest dtype" in tandem("show", "--dtype", "half", code=1).stderr


FRENCH = "translate English to French: "


def test_generate_answers_arguments_a_file_and_stdin_alike(tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text(f"{FRENCH}I am tired.\n\n{FRENCH}I am happy.\n")
    from_file = tandem("generate", "--file", str(file)).stdout
    assert from_file.splitlines()[0].startswith("Je suis")
    assert from_file.splitlines()[1] == "", "a blank line has a blank answer"
    assert tandem("generate", stdin=file.read_text()).stdout == from_file
    arguments = tandem("generate", FRENCH + "I am tired.", FRENCH + "I am happy.").stdout
    assert arguments.splitlines() == [text for text in from_file.splitlines() if text]


@pytest.fixture(scope="module")
def loaded() -> Iterator[LLM]:
    with LLM() as llm:
        yield llm


@pytest.fixture
def quick(loaded: LLM, monkeypatch: pytest.MonkeyPatch) -> LLM:
    """The bundled model, loaded once for the commands of several tests."""
    monkeypatch.setattr("tandem.offline.LLM", lambda _: nullcontext(loaded))
    return loaded


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_are_those_of_the_file(tmp_path: Path, quick: LLM, end: str, mark: str) -> None:
    file = tmp_path / "lines"
    lines = [FRENCH + "I am tired.", "", FRENCH + "I am\u2028happy.", FRENCH + "I see\x0bhim."]
    answers = [output.outputs[0].text for output in quick.generate([line for line in lines if line])]
    expected = [answers[0], "", *answers[1:]]
    file.write_bytes((mark + end.join(lines)).encode())
    assert tandem("generate", "--file", str(file)).stdout == "\n".join([*expected, ""])
    assert tandem("generate", stdin=file.read_bytes()).stdout == "\n".join([*expected, ""])


def test_files_in_other_encodings(tmp_path: Path, quick: LLM) -> None:
    lines = [FRENCH + "I am tired.", "hé", FRENCH + "I am happy."]
    stdin = "\n".join(lines).encode("latin-1")
    tired, happy = (output.outputs[0].text for output in quick.generate([lines[0], lines[2]]))
    said = "line 2: InvalidRequest byte 0xE9: not UTF-8; convert it, as by iconv -f LATIN1 -t UTF-8\n"
    for more in ([], ["--stream"]):
        result = tandem("generate", *more, stdin=stdin, code=1)
        assert (result.stdout, result.stderr) == (f"{tired}\n\n{happy}\n", said)
    answers = map(json.loads, tandem("generate", "--jsonl", stdin=stdin, code=1).stdout.splitlines())
    assert [(one["prompt"], "error" in one) for one in answers] == [
        (lines[0], False), (None, True), (lines[2], False),
    ]  # fmt: skip
    file = tmp_path / "lines"
    file.write_bytes("hé".encode("utf-16"))
    assert "--file: is UTF-16, not UTF-8" in tandem("translate", "--file", str(file), code=1).stderr
    assert "standard input: is UTF-16" in tandem("generate", stdin=file.read_bytes(), code=1).stderr


def test_what_is_said_may_look_like_markup() -> None:
    folder = "./models/[v2][/x]:smile:"
    for verb in ("generate", "summarize", "score"):
        said = tandem(verb, "--model", folder, "hi", "there", code=1).stderr
        assert said == f"ModelLoadError model: no folder {folder[2:]}\n"
    assert (
        tandem("generate", "-p", "[/x]=1", "hi", code=1).stderr == "InvalidRequest [/x]: unknown parameter\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_answers_are_utf_8_whatever_the_locale_says(
    quick: LLM, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    written = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, file in written.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(file, encoding=encoding, write_through=True))
    text = FRENCH + "I am tired. 你好"
    for arguments in (["generate", text, "你好 " * 9000], ["show", "./é"]):
        assert app(arguments, standalone_mode=False) == 1
    (output,) = quick.generate(text)
    assert "é" in output.outputs[0].text
    assert written["stdout"].getvalue().decode() == f"{output.outputs[0].text}\n\n"
    assert "no folder é" in written["stderr"].getvalue().decode()


def test_a_line_that_is_too_long_is_named_and_the_others_are_answered(quick: LLM) -> None:
    lines = [FRENCH + "I am tired.", "be " * 9000, "", FRENCH + "I am happy."]
    stdin = "\n".join(lines)
    plain = tandem("generate", stdin=stdin, code=1)
    tired, happy = (output.outputs[0].text for output in quick.generate([lines[0], lines[3]]))
    assert plain.stdout == f"{tired}\n\n\n{happy}\n"
    refusal = "has 9001 tokens, the limit is 4096: shorten it or set truncate_prompt_tokens"
    assert plain.stderr == f"line 2: InvalidRequest prompt: {refusal}\n"
    jsonl = tandem("generate", "--jsonl", stdin=stdin, code=1)
    answers = [json.loads(line) for line in jsonl.stdout.splitlines()]
    assert jsonl.stderr == plain.stderr
    assert [answer["prompt"] for answer in answers] == lines
    assert [one.get("outputs", [{}])[0].get("text") for one in answers] == [tired, None, "", happy]
    assert answers[1]["error"]["param"] == "prompt"
    streamed = tandem("generate", "--stream", stdin=stdin, code=1)
    assert (streamed.stdout, streamed.stderr) == (plain.stdout, plain.stderr)
    sampled = tandem("generate", "-p", "n=2", "-p", "temperature=1.0", "-p", "seed=1", stdin=stdin, code=1)
    assert len(sampled.stdout.splitlines()) == 8, "two for each"
    assert sampled.stdout.splitlines()[2:6] == [""] * 4
    alone = tandem("generate", lines[1], code=1)
    assert (alone.stdout, alone.stderr) == ("", f"InvalidRequest prompt: {refusal}\n")
    every = tandem("generate", lines[1], lines[1], code=1)
    assert every.stdout == "\n\n"
    assert every.stderr == "".join(f"line {n}: InvalidRequest prompt: {refusal}\n" for n in (1, 2))
    for more in ([], ["", "  "]):
        shared = tandem("generate", "-p", "forced_bos_token_id=99999", "a", "b", *more, code=1)
        assert (shared.stdout, shared.stderr.count("\n")) == ("", 1), "what is asked of all is at fault"
    cut = tandem("generate", "--truncate", stdin=stdin).stdout.splitlines()
    assert [cut[0], cut[2], cut[3]] == [tired, "", happy]
    (first,) = quick.generate(lines[1], truncate_prompt_tokens=512)
    assert cut[1] == first.outputs[0].text
    short = tandem("generate", "-p", "truncate_prompt_tokens=9", lines[0] + " and happy.").stdout
    assert (
        short == quick.generate(lines[0] + " and happy.", truncate_prompt_tokens=9)[0].outputs[0].text + "\n"
    )


def test_one_answer_a_line_whatever_is_in_it(quick: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers with line feeds."""

    def generate_each(prompts: list[str], **_: Any) -> list[RequestOutput]:
        texts = (f"{prompt}\na\r\nb\u2028c\n" for prompt in prompts)
        return [RequestOutput("", "", [], None, [], [CompletionOutput(0, text, [])]) for text in texts]

    monkeypatch.setattr(quick, "generate_each", generate_each)
    assert tandem("generate", stdin="1\n2\n\n4\n").stdout == "1 a b c \n2 a b c \n\n4 a b c \n"
    jsonl = tandem("generate", "--jsonl", stdin="1\n2\n\n4\n").stdout
    assert jsonl.count("\n") == len(jsonl.splitlines()) == 4
    assert json.loads(jsonl.splitlines()[3])["outputs"][0]["text"] == "4\na\r\nb\u2028c\n"
    pieces = [TextDelta(0, text, []) for text in ("x\n", "y\r", "\nz")]
    monkeypatch.setattr(quick, "stream", lambda *_, **__: iter(pieces))
    assert tandem("generate", "--stream", stdin="1\n\n3\n").stdout == "x y  z\n\nx y  z\n"


def test_a_server_is_asked_for_the_segments_that_it_would_cut_itself(
    quick: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts are cut here, by what the server says of its model."""
    asked: list[str] = []

    class Server:
        def models(self) -> list[Any]:
            return [SimpleNamespace(max_segment_tokens=quick._request_builder.max_segment_tokens)]

        def tokenize(self, text: str) -> list[int]:
            return quick.tokenize(text)

        def generate_each(self, prompts: list[str], **_: Any) -> list[RequestOutput]:
            asked.extend(prompts)
            return [RequestOutput("", "", [], None, [], [CompletionOutput(0, "x", [])]) for _ in prompts]

    monkeypatch.setattr("tandem.client.Client", lambda *_, **__: nullcontext(Server()))
    long = "I am tired, and I am happy – " * 100
    text = f">>fra<< I am tired. Où est-il ? {long}"
    assert tandem("translate", "--server", "x", text).stdout.count("x") == len(asked)
    own = [f">>fra<< {part}" for part in quick.segment(text.removeprefix(">>fra<< ")).segments]
    assert asked == own
    asked.clear()
    tandem("translate", "--server", "x", "--split", "none", text)
    assert asked == [text]


@pytest.mark.usefixtures("quick")
def test_translate_truncates_what_it_does_not_cut() -> None:
    long = "I am tired. " * 2000
    whole = ["translate", "--split", "none", "--max-tokens", "3"]
    assert "has 8006 tokens" in tandem(*whole, long, code=1).stderr
    assert len(tandem(*whole, "--truncate", long).stdout.splitlines()) == 1


def test_translate_reads_texts_of_many_sentences(tmp_path: Path, quick: LLM) -> None:
    prompts = [
        FRENCH + text for text in ("I am tired.", "Where do you live?", "I am tired. Where do you live?")
    ]
    one, two, whole = (output.outputs[0].text for output in quick.generate(prompts))
    file = tmp_path / "texts"
    file.write_text("\ufeffI am tired. Where do you live?\n   \nI am tired.\n")
    assert tandem("translate", "--file", str(file)).stdout == f"{one} {two}\n   \n{one}\n"
    argument = tandem("translate", "I am tired.\n\nWhere do you live?", "--jsonl").stdout
    (answer,) = json.loads(argument)["outputs"]
    assert (answer["text"], answer["finish_reason"]) == (f"{one}\n\n{two}", "stop")
    for split in ("line", "none"):
        split_at = ["--split", split, "I am tired. Where do you live?"]
        assert tandem("translate", *split_at).stdout == f"{whole}\n"
    long = "I am tired, and I am happy, " * 1000
    assert tandem("translate", long).stdout.count("\n") == 1, "no text is too long"


@pytest.mark.usefixtures("quick")
def test_blank_lines_are_their_own_answers() -> None:
    for blank in ("", "  ", "\u200b", "\u3000\ufeff"):
        for more in ([], ["--stream"]):
            assert tandem("generate", *more, stdin=f"{blank}\n{blank}\n").stdout == f"{blank}\n" * 2


def test_generate_streams_the_same_text() -> None:
    whole = tandem("generate", FRENCH + "I am tired.").stdout
    assert tandem("generate", "--stream", FRENCH + "I am tired.").stdout == whole


def test_json_lines_hold_every_sample() -> None:
    result = tandem(
        "generate", "--jsonl", "-p", "n=2", "-p", "temperature=1.0", "-p", "seed=3", FRENCH + "Hi."
    )
    (line,) = map(json.loads, result.stdout.splitlines())
    assert line["prompt"] == FRENCH + "Hi."
    assert len(line["outputs"]) == 2
    assert set(line["outputs"][0]) == {"text", "finish_reason", "tokens"}


def test_progress_goes_to_stderr() -> None:
    result = tandem("translate", *["I am tired."] * 5)
    assert "5/5" in result.stderr
    assert len(result.stdout.splitlines()) == 5


def test_a_default_that_is_written_out_leaves_the_models_beams(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "flan")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_beams": 2, "max_new_tokens": 4}))
    arguments = ["generate", "--model", str(folder), "--jsonl", "ba be"]
    own = tandem(*arguments).stdout
    assert "score" in json.loads(own)["outputs"][0]
    assert (
        tandem(*arguments, "--temperature", "0", "-p", "n=1", "-p", "top_p=1", "-p", "seed=1").stdout == own
    )
    greedy = tandem(*arguments, "-p", "num_beams=1", "-p", "logprobs=0").stdout
    assert "score" not in json.loads(greedy)["outputs"][0]
    assert "n: does not go with beam search" in tandem(*arguments, "-p", "n=2", code=1).stderr


def test_translate_knows_the_models_languages() -> None:
    assert tandem("translate", "--to", "de", "I am happy.").stdout.startswith("Ich bin")
    refused = tandem("translate", "--to", "xx", "I am happy.", code=1).stderr
    assert "target_language: 'xx' is not one of this model's languages: de, fr" in refused


def test_translate_with_a_tokenizer_of_many_languages(tmp_path: Path) -> None:
    folder = str(multilingual_checkpoint(tmp_path))
    arguments = ["translate", "--model", folder, "--from", "eng_Latn", "--max-tokens", "5", "--jsonl", "a b"]
    (french, german) = (tandem(*arguments, "--to", to).stdout for to in ("fra_Latn", "deu_Latn"))
    assert json.loads(french)["prompt"] == "a b"
    assert french != german
    named = [name if name != "eng_Latn" else "English" for name in arguments]
    assert tandem(*named, "--to", "fr").stdout == french
    assert "target_language: 'xx' is not one of" in tandem(*arguments, "--to", "xx", code=1).stderr
    generated = tandem("generate", *arguments[1:], "--to", "fra_Latn").stdout
    assert generated == french, "languages are no matter of the command"


def test_translate_with_a_model_of_unknown_languages(checkpoint: Callable[..., Path]) -> None:
    refused = tandem("translate", "--model", str(checkpoint("t5")), "ba", code=1).stderr
    assert "target_language: this model says nothing of languages" in refused


def test_summarize_does_what_the_config_says(tmp_path: Path) -> None:
    task = {"prefix": "ba be: ", "max_length": 9, "min_length": 5}
    folder = str(make_checkpoint(tmp_path, "flan", task_specific_params={"summarization": task}))
    (line,) = map(
        json.loads, tandem("summarize", "--model", folder, "--jsonl", "bi bo bu").stdout.splitlines()
    )
    assert line["prompt"] == "bi bo bu"
    generated = tandem("generate", "--model", folder, "--task", "summarization", "--stream", "bi bo bu")
    assert generated.stdout == line["outputs"][0]["text"] + "\n"
    refused = tandem("generate", "--model", folder, "--task", "summarisation", "bi bo bu", code=1).stderr
    assert "task: 'summarisation' is not a task of this model; it has summarization" in refused
    same = tandem("generate", "--model", folder, "-p", "min_tokens=4", "--max-tokens", "8", "ba be: bi bo bu")
    assert same.stdout == line["outputs"][0]["text"] + "\n"
    assert 5 - 1 <= line["outputs"][0]["tokens"] <= 9 - 1, "lengths count the start token"
    beams = tandem("summarize", "--model", folder, "--jsonl", "-p", "num_beams=3", "bi bo bu")
    assert 5 - 1 <= json.loads(beams.stdout)["outputs"][0]["tokens"] <= 9 - 1
    result = tandem("summarize", "--model", folder, "--max-tokens", "4", "--jsonl", "bi bo bu")
    assert json.loads(result.stdout)["outputs"][0]["tokens"] == 4, "options go before the config"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "-p", "top_q=1", "x"], "top_q: unknown parameter"),
        (["generate", "-p", "top_p", "x"], "param: expected NAME=VALUE"),
        (["generate", "-p", "top_p=high", "x"], "top_p"),
        (["generate", "--model", "./no/such", "x"], "model: no folder"),
        (["serve", "--limit", "samples=1"], "--limit samples: unknown parameter"),
        (["serve", "--limit", "n=many"], "--limit n: "),
        (["serve", "--default", "top_q=1"], "--default top_q: unknown parameter"),
        (["serve", "--decoders", "0"], "--decoders: Input should be greater than 0"),
        (["serve", "--tp", "0"], "--tensor-parallel-size: Input should be greater than 0"),
        (["serve", "--max-queue-wait", "0"], "--max-queue-wait: Input should be greater than 0"),
        (["serve", "--engine-silence", "1"], "--engine-silence: Input should be greater than or equal to 2"),
        (["serve", "--set", "page_sise=16"], "--set page_sise: unknown parameter"),
        (["serve", "--set", "page_size=0"], "--set page_size: must be at least 1"),
        (["serve", "--set", "max_batched_tokens=32"], "--set max_batched_tokens: must be at least"),
        (["serve", "--set", "dtype=float32"], "--set dtype: is set by --dtype"),
        (["serve", "./no/such"], "model: no folder"),
        (["generate", "--server", "127.0.0.1:1", "x"], "no server answers: ipv4:127.0.0.1:1: "),
    ],
)
def test_errors_name_their_field(arguments: list[str], message: str) -> None:
    assert message in tandem(*arguments, code=1).stderr


def test_any_field_of_the_cluster_can_be_set() -> None:
    options = ClusterOptions(max_num_seqs=8, settings=["cuda_graphs=false", "page_size=16", "encoder_cpus=2"])
    config = options.config(placement=Placement.colocated, model="quickstart", limit=["n=4"])
    assert (config.cuda_graphs, config.page_size, config.encoder_cpus) == (False, 16, 2.0)
    assert (config.max_num_seqs, config.placement, config.limits.n) == (8, "colocated", 4)


def test_a_batch_that_cannot_or_need_not_run_starts_nothing(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    assert "input: cannot be read" in tandem("batch", str(source), str(sink), code=1).stderr
    source.write_text('{"prompt": "a"}\n')
    assert "top_q: unknown" in tandem("batch", str(source), str(sink), "-p", "top_q=1", code=1).stderr
    sink.write_text('{"id": 1}\n')
    assert "Every line" in tandem("batch", str(source), str(sink)).stderr


def test_a_batch_names_its_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Echo:
        async def generate(self, prompt: Any, *_: Any, **options: Any) -> RequestOutput:
            assert options["truncate_prompt_tokens"] == -1
            return RequestOutput("", "", [], None, [], [CompletionOutput(0, prompt["prompt"], [1], "stop")])

    def in_process(read: Any, answerer: dict[str, Any], _: int) -> Iterator[Any]:
        answer = run.Answerer(**answerer)
        return (asyncio.run(answer(chunk)) for chunk in read())

    monkeypatch.setattr("tandem.cluster.start.ray_alone", lambda _: nullcontext())
    monkeypatch.setattr("tandem.cli.batch._connect", lambda *_: Echo())
    monkeypatch.setattr(run, "on_ray", in_process)
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('\ufeff{"prompt": "a"}\n' + '{"prompt": "b", "top_q": 1}\n' * 30 + '{"prompt": "c"}')
    command = ["batch", str(source), str(sink), "--server", "x", "--truncate"]
    said = tandem(*command, code=1).stderr
    assert "line 2: top_q: unknown parameter\n" in said
    assert "line 21: " in said
    assert "line 22: " not in said
    assert "10 more lines have errors: see" in said
    assert "2 answers, 2 tokens, 30 errors." in said
    assert len(sink.read_text().splitlines()) == 32
    assert "Every line" in tandem(*command).stderr


def test_summarize_says_what_a_model_has_instead() -> None:
    result = tandem("summarize", "--model", "quickstart", "--max-tokens", "2", "A house.")
    assert "quickstart has no summarization task, only translation_en_to_" in result.stderr


def test_usage_errors(tmp_path: Path) -> None:
    assert "not both" in tandem("generate", "--file", str(tmp_path / "f"), "x", code=2).stderr
    assert "No such file" in tandem("generate", "--file", str(tmp_path / "f"), code=2).stderr
    assert "leave one out" in tandem("generate", "--stream", "--jsonl", "x", code=2).stderr
