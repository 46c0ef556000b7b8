"""Batches against a server whose answers each test scripts."""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Unpack

import batches
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from batches import Server, in_process, output, read, write

from tandem.batch import answerer, corpus
from tandem.batch import run as batch
from tandem.cluster import start
from tandem.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    TandemError,
    Unavailable,
)
from tandem.inputs import RequestOptions
from tandem.outputs import RequestOutput, TokenLogprobs
from tandem.params import BeamSearchParams, Params, SamplingParams


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def run(files: tuple[Path, Path], server: Server, *, use_tqdm: bool = False, **options: Any) -> batch.Summary:
    return batch.run(*files, lambda: server, use_tqdm=use_tqdm, pipeline=in_process, **options)


def test_every_line_is_answered_in_order(files: tuple[Path, Path]) -> None:
    write(files[0], {"prompt": "a"}, "", {"prompt": "b", "id": "two"}, {"prompt": "c", "id": 7})
    server = Server()
    assert run(files, server) == batch.Summary(answered=3, refused=0, tokens=9)
    answer = {"finish_reason": "stop", "tokens": 3}
    assert read(files[1]) == [
        {"id": 1, "outputs": [{"text": "A", **answer}]},
        {"id": "two", "outputs": [{"text": "B", **answer}]},
        {"id": 7, "outputs": [{"text": "C", **answer}]},
    ]
    assert {priority for *_, priority in server.asked} == {-10}, "whoever waits goes first"


def test_prompts_are_of_every_kind_and_parameters_the_lines_own_first(files: tuple[Path, Path]) -> None:
    write(
        files[0],
        {"prompt": "a", "max_tokens": 5},
        {"prompt_token_ids": [3, 1]},
        {"prompt": "b", "decoder_prompt": "c"},
        {"encoder_prompt": {"prompt_token_ids": [4, 1]}, "decoder_prompt": None},
    )
    server = Server()
    run(files, server, defaults={"max_tokens": 9, "temperature": 0})
    prompts = [prompt for prompt, *_ in server.asked]
    assert prompts == [
        {"prompt": "a"},
        {"prompt_token_ids": [3, 1]},
        {"encoder_prompt": {"prompt": "b"}, "decoder_prompt": "c"},
        {"encoder_prompt": {"prompt_token_ids": [4, 1]}, "decoder_prompt": None},
    ]
    params = [params for _, params, _ in server.asked]
    assert params == [
        SamplingParams(max_tokens=5, temperature=0),
        *[SamplingParams(max_tokens=9, temperature=0)] * 3,
    ]


def test_lines_say_task_and_languages(files: tuple[Path, Path]) -> None:
    write(files[0], {"prompt": "a", "target_language": "fr"}, {"prompt": "b"}, {"prompt": "c", "task": 3})
    server = Server()
    run(files, server, defaults={"source_language": "en", "target_language": "de"})
    assert server.task_options == [
        {"source_language": "en", "target_language": "fr"},
        {"source_language": "en", "target_language": "de"},
    ]
    assert [params for _, params, _ in server.asked] == [None, None]
    assert read(files[1])[2]["error"]["param"] == "task"


def test_a_line_without_parameters_is_left_to_the_model(files: tuple[Path, Path]) -> None:
    write(files[0], {"prompt": "a"}, {"prompt": "b", "num_beams": 2}, {"prompt": "c", "max_tokens": 5})
    server = Server()
    run(files, server)
    asked = [params for _, params, _ in server.asked]
    assert asked == [None, BeamSearchParams(num_beams=2), SamplingParams(max_tokens=5)]


def test_a_bad_line_has_its_error_and_holds_nobody_up(files: tuple[Path, Path]) -> None:
    async def refuse(text: str) -> RequestOutput:
        if text == "long":
            raise InvalidRequest("has 9 tokens, the limit is 4", field="prompt")
        return output(text)

    bad = [
        ('{"prompt": ', None, 1),
        ("[1]", None, 2),
        ({"id": 3}, "prompt", 3),
        ({"prompt": "a", "prompt_token_ids": [1]}, "prompt", 4),
        ({"prompt": "a", "top_q": 1, "id": "five"}, "top_q", "five"),
        ({"prompt": "a", "id": [6]}, "id", 6),
        ({"prompt": 7}, "prompt", 7),
        ({"prompt": "a", "top_q": 1, "id": "half a \ud83d"}, "top_q", "half a \ud83d"),
        ({"prompt": "long"}, "prompt", 9),
    ]
    write(files[0], *[line for line, *_ in bad], {"prompt": "good"})
    assert run(files, Server(refuse)) == batch.Summary(answered=1, refused=len(bad), tokens=3)
    *errors, good = read(files[1])
    assert [(error["error"]["param"], error["id"]) for error in errors] == [(f, i) for _, f, i in bad]
    assert {error["error"]["code"] for error in errors} == {"invalid_argument"}
    assert {error["error"]["type"] for error in errors} == {"invalid_request_error"}
    assert good["outputs"][0]["text"] == "good"


def test_errors_are_named_with_their_lines(files: tuple[Path, Path]) -> None:
    files[0].write_bytes(
        b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b", "id": "x", "top_q": 1}\r\n'
        + b'{"prompt": "\xe9"}\n[1\n' + b"[" * 100_000 + b"\n" + b"9" * 5000
        + b'\n{"prompt": "c", "truncate_prompt_tokens": "9"}\n{"prompt": "d\\u2028", "id": 1}'
    )  # fmt: skip
    named: list[str] = []
    assert run(files, Server(), on_error=named.append).answered == 2
    assert [text[:60] for text in named] == [
        "line 3: top_q: unknown parameter",
        "line 4: byte 0xE9: not UTF-8; convert it, as by iconv -f LATIN1 -t UTF-8"[:60],
        "line 5: not JSON: Expecting ',' delimiter at character 3 of the line"[:60],
        "line 6: not JSON that can be read: maximum recursion depth exceeded"[:60],
        "line 7: not JSON that can be read: Exceeds the limit (4300 digits)"[:60],
        "line 8: truncate_prompt_tokens: must be of type int, got str"[:60],
    ]
    answers = read(files[1])
    assert [answer["id"] for answer in answers] == [1, "x", 4, 5, 6, 7, 8, 1]
    assert answers[0]["outputs"][0]["text"] == "A", "the byte order mark is no part of the first line"
    assert files[1].read_text().count("\n") == len(answers)


def test_every_file_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "%s"}\n' % name.encode())
    with gzip.open(tmp_path / "c.jsonl.gz", "wb") as file:
        file.write(b'\xef\xbb\xbf{"prompt": "c"}\n')
    assert run((tmp_path, tmp_path / "out"), Server()).answered == 3
    (tmp_path / "d.jsonl").write_bytes('{"prompt": "d"}\n'.encode("utf-16"))
    with pytest.raises(InvalidRequest, match=r"input: cannot be read: .*d\.jsonl: is UTF-16, not UTF-8; "):
        run((tmp_path, tmp_path / "out"), Server())


def test_lines_are_cut_on_request(files: tuple[Path, Path]) -> None:
    write(files[0], {"prompt": "a", "truncate_prompt_tokens": 5}, {"prompt": "b"})
    server = Server()
    run(files, server, defaults={"truncate_prompt_tokens": -1})
    assert server.truncations == [5, -1]
    with pytest.raises(InvalidRequest) as caught:
        run(files, Server(), defaults={"truncate_prompt_tokens": "9"})
    assert caught.value.field == "truncate_prompt_tokens"


def test_an_interrupted_run_goes_on_where_it_was(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_CHUNK", 4)
    write(files[0], *[{"prompt": f"p{n}"} for n in range(20)])

    async def gone(text: str) -> RequestOutput:
        if int(text[1:]) >= 12:
            raise Unavailable("gone")
        return output(text)

    with pytest.raises(Unavailable):
        run(files, Server(gone), concurrency=2, patience_s=0)
    done = len(read(files[1]))
    assert done == 12
    with files[1].open("a") as out:
        out.write('{"id": 13, "outp')  # killed while it wrote
    server = Server()
    assert run(files, server).answered == 8
    assert [line["id"] for line in read(files[1])] == list(range(1, 21))
    assert Counter(str(prompt) for prompt, *_ in server.asked).most_common(1)[0][1] == 1
    assert len(server.asked) == 8
    assert run(files, Server()) == batch.Summary(0, 0, 0), "nothing left"


@pytest.mark.parametrize(
    ("error", "times", "code"),
    [
        (Overloaded("full"), 2, None),
        (Unavailable("gone"), 2, None),
        (InternalError("defect"), 2, None),
        (InternalError("defect"), 3, "internal"),
        (DeadlineExceeded("late"), 3, "deadline_exceeded"),
    ],
)
def test_what_may_pass_is_tried_again(
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    error: TandemError,
    times: int,
    code: str | None,
) -> None:
    monkeypatch.setattr(answerer, "_FIRST_PAUSE_S", 0.001)
    left = {"bad": times}

    async def failing(text: str) -> RequestOutput:
        if left.get(text, 0):
            left[text] -= 1
            raise error
        return output(text)

    write(files[0], {"prompt": "bad"}, {"prompt": "good"})
    run(files, Server(failing))
    bad, good = read(files[1])
    assert good["outputs"]
    assert bad.get("error", {}).get("code") == code


def test_an_answer_cut_off_by_time_is_no_answer(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerer, "_FIRST_PAUSE_S", 0.001)

    async def late(text: str) -> RequestOutput:
        return output(text, "deadline")

    write(files[0], {"prompt": "a"})
    run(files, Server(late))
    assert read(files[1])[0]["error"]["code"] == "deadline_exceeded"


def test_a_timeout_beyond_the_servers_ends_the_run(files: tuple[Path, Path]) -> None:
    async def refuse(_: str) -> RequestOutput:
        raise InvalidRequest("must be above 0 and at most 60000, got 600000", field="timeout_ms")

    write(files[0], {"prompt": "a"})
    with pytest.raises(InvalidRequest):
        run(files, Server(refuse))
    assert read(files[1]) == []


def test_requests_at_the_server_are_bounded(files: tuple[Path, Path]) -> None:
    write(files[0], *[{"prompt": str(n)} for n in range(60)])
    server = Server()
    run(files, server, concurrency=3)
    assert server.most == 3


def test_files_that_do_not_belong_together_are_refused(files: tuple[Path, Path]) -> None:
    write(files[0], {"prompt": "a"}, {"prompt": "b"})

    def refused(match: str, field: str, chosen: tuple[Path, Path] = files) -> None:
        with pytest.raises(InvalidRequest, match=match) as caught:
            run(chosen, Server())
        assert caught.value.field == field

    write(files[1], {"id": 1}, {"id": "other"})
    refused("line 2 does not answer line 2", "output")
    write(files[1], {"id": 1}, {"id": 2}, {"id": 3})
    refused("has 3 lines", "output")
    refused("must not be the input", "output", (files[0], files[0]))
    refused("cannot be read", "input", (files[0].with_name("none"), files[1]))
    refused("cannot be written", "output", (files[0], files[0].parent))
    files[1].unlink()
    with files[1].open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused("another run writes", "output")


def test_defaults_that_no_line_could_use_are_refused_at_once(files: tuple[Path, Path]) -> None:
    write(files[0], {"prompt": "a"})
    with pytest.raises(InvalidRequest) as caught:
        run(files, Server(), defaults={"top_q": 1})
    assert caught.value.field == "top_q"
    assert corpus.remaining(*files) == 1


def test_scores_and_logprobs_are_kept(files: tuple[Path, Path]) -> None:
    async def scored(text: str) -> RequestOutput:
        answer = output(text)
        answer.outputs[0].score = -0.5
        answer.outputs[0].logprobs = [TokenLogprobs(7, -0.1, [(7, -0.1)])]
        return answer

    write(files[0], {"prompt": "a"})
    run(files, Server(scored))
    (sample,) = read(files[1])[0]["outputs"]
    assert sample["score"] == -0.5
    assert sample["logprobs"] == [{"token_id": 7, "logprob": -0.1, "top": [[7, -0.1]]}]


def test_progress_is_shown_on_stderr(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write(files[0], {"prompt": "a"}, {"prompt": "b"})
    run(files, Server(), use_tqdm=True)
    shown = capsys.readouterr()
    assert "2/2" in shown.err
    assert shown.out == ""


def test_a_folder_or_a_pattern_is_read_as_one_file(tmp_path: Path) -> None:
    folder, sink = tmp_path / "in", tmp_path / "out.jsonl"
    folder.mkdir()
    write(folder / "b.jsonl", {"prompt": "c"}, {"prompt": "d", "id": "own"})
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.write('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    (folder / "README").write_text("no requests")
    rows = [{"prompt": "e", "max_tokens": 5}, {"prompt": "f", "top_k": 2}]
    pq.write_table(
        pa.Table.from_pylist(rows, pa.schema({"prompt": "string", "max_tokens": "int64", "top_k": "int64"})),
        folder / "c.parquet",
    )
    server = Server()
    run((folder, sink), server)
    assert [(line["id"], line["outputs"][0]["text"]) for line in read(sink)] == [
        (1, "A"), (3, "B"), (4, "C"), ("own", "D"), (6, "E"), (7, "F")
    ]  # fmt: skip
    params = [params for _, params, _ in server.asked]
    assert params[4:] == [SamplingParams(max_tokens=5), SamplingParams(top_k=2)]
    assert corpus.remaining(folder, sink) == 0
    assert corpus.remaining(folder / "*.jsonl*", tmp_path / "other.jsonl") == 4
    with pytest.raises(InvalidRequest, match=r"no \.jsonl"):
        corpus.remaining(folder / "*.json", sink)
    with pytest.raises(InvalidRequest, match="must not be the input"):
        corpus.remaining(folder, folder / "b.jsonl")


class Capitals(Server):
    """A server that can be sent to another process."""

    async def generate(
        self,
        prompt: Any,
        params: Params | None = None,  # noqa: ARG002
        **options: Unpack[RequestOptions],  # noqa: ARG002
    ) -> RequestOutput:
        await asyncio.sleep(0.001 * (len(prompt["prompt"]) % 3))  # not answered in the order they came
        if prompt["prompt"] == "end":
            raise InvalidRequest("beyond the server's", field="timeout_ms")
        return output(prompt["prompt"].upper())


@pytest.mark.ray
def test_on_ray(files: tuple[Path, Path]) -> None:
    for module in (sys.modules[__name__], batches):  # actors cannot import them
        ray.cloudpickle.register_pickle_by_value(module)
    write(files[0], *[{"prompt": "x" * (n % 7)} for n in range(500)], {"prompt": "end"})
    with start.ray_alone():
        # No CPU is left: workers may have reserved them all.
        @ray.remote(num_cpus=ray.available_resources()["CPU"])
        class Worker:
            pass

        worker = Worker.remote()  # type: ignore[attr-defined]
        ray.get(worker.__ray_ready__.remote())
        with pytest.raises(InvalidRequest) as caught:
            batch.run(*files, Capitals, connections=2, concurrency=20)
        assert type(caught.value) is InvalidRequest
        answers = read(files[1])
        assert [line["id"] for line in answers] == list(range(1, len(answers) + 1))
        write(files[0], *[{"prompt": "x" * (n % 7)} for n in range(500)])
        assert batch.run(*files, Capitals, connections=2, concurrency=20).answered == 500 - len(answers)
    assert [line["outputs"][0]["text"] for line in read(files[1])] == ["X" * (n % 7) for n in range(500)]
