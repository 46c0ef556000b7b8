"""Every T5, Whisper and models that read images through the cluster, tensor-parallel 1 and 2: token for
token transformers'."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import florence
import grpc
import httpx
import mllama
import numpy as np
import pix2struct
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import t5gemma2
import torch
import vision
import whisper
from audio_files import wav
from image_cases import Case
from image_chats import image_part, text_part
from models import EOS, T5_VARIANTS, VOCAB, load_reference, reference_greedy, word_tokenizer
from serving import Stub, ids_request, make_config, metrics, on_ports_of
from typer.testing import CliRunner

from tandem import LLM, Client, InvalidRequest, SamplingParams, TandemError
from tandem.cli import app
from tandem.cluster import launch
from tandem.cluster.config import Placement, ServeConfig
from tandem.live import LiveParams, Sound
from tandem.media import png
from tandem.transcription import Transcription, TranscriptionOptions
from tandem.workers.requests.answers.document_fields import DocumentFields

pytestmark = pytest.mark.ray
MAX_TOKENS = 24
# Its header can be read; its samples are no numbers.
BROKEN = wav(np.full(4_000, np.nan), whisper.RATE)
PROMPTS = 64


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    lengths = [1, 2, 31, 32, 33, 150, *(rng.randrange(1, 80) for _ in range(PROMPTS - 6))]
    return [[*(rng.randrange(3, 128) for _ in range(length)), EOS] for length in lengths]


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[launch.RunningCluster, ServeConfig]]:
    config = make_config()
    with launch.RunningCluster(config) as cluster:
        yield cluster, config


@pytest.mark.parametrize(
    ("variant", "tensor_parallel_size"),
    # Every T5 once, as a deployment takes a while: what ranks do is compared for all in the matrix. The last
    # is colocated, as decoder-only models always are.
    [*zip(T5_VARIANTS, cycle((1, 2)), strict=False), ("gpt2", 1)],
)
def test_greedy(
    started: tuple[launch.RunningCluster, ServeConfig],
    checkpoint: Callable[..., Path],
    variant: str,
    tensor_parallel_size: int,
) -> None:
    cluster, first = started
    folder = checkpoint(variant)
    expected, _ = reference_greedy(load_reference(folder), prompts(), MAX_TOKENS)

    with LLM(str(folder), dtype="float32", tensor_parallel_size=tensor_parallel_size) as llm:
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts()],
            SamplingParams(temperature=0, max_tokens=MAX_TOKENS),
            use_tqdm=False,
        )
    assert [output.outputs[0].token_ids for output in outputs] == expected

    config = make_config(model=str(folder), tensor_parallel_size=tensor_parallel_size)
    endpoints = cluster.deploy(on_ports_of(config, first))
    with grpc.insecure_channel(endpoints.grpc[0]) as channel, ThreadPoolExecutor(PROMPTS) as pool:
        stub = Stub(channel)
        answers = pool.map(
            lambda ids: stub.Generate(ids_request(ids, max_tokens=MAX_TOKENS, temperature=0), timeout=120),
            prompts(),
        )
        embeddings = pool.submit(_embedded, endpoints.grpc[0], folder) if variant != "gpt2" else None
        assert [list(answer.outputs[0].token_ids) for answer in answers] == expected
        assert embeddings is None or embeddings.result()


def _embedded(target: str, folder: Path) -> bool:
    """Whether a server gives the prompts' hidden states, which are transformers'."""
    encoder = load_reference(folder, torch.float64).get_encoder()
    with Client(target) as client, torch.no_grad():
        found = client.embed([{"prompt_token_ids": ids} for ids in prompts()])
        for output, ids in zip(found, prompts(), strict=True):
            states = encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
            np.testing.assert_allclose(output.embedding, states.mean(0).numpy(), rtol=1e-5, atol=1e-4)
    return True


@pytest.mark.parametrize(("placement", "tensor_parallel_size"), [("disaggregated", 2), ("colocated", 1)])
def test_whisper(
    started: tuple[launch.RunningCluster, ServeConfig],
    tmp_path: Path,
    placement: Placement,
    tensor_parallel_size: int,
) -> None:
    """Recordings from many clients at once; what one damaged file gets is its own."""
    cluster, first = started
    folder = whisper.make_whisper(tmp_path, "base")
    reference = whisper.Reference(folder)
    asked = {"source_language": "fr", "task": "translate"}
    found = whisper.cases(reference, asked, 12)
    config = make_config(
        model=str(folder),
        placement=placement,
        tensor_parallel_size=tensor_parallel_size,
        max_encoder_tokens=200,
    )
    endpoints = cluster.deploy(on_ports_of(config, first))
    greedy = SamplingParams(temperature=0, max_tokens=whisper.TOKENS)

    with Client(endpoints.grpc[0]) as client, ThreadPoolExecutor(13) as pool:

        def ask(samples: Any) -> list[int] | TandemError:
            try:
                answer = client.generate(whisper.audio(samples), greedy, **asked)
            except TandemError as error:
                return error
            return whisper.text_ids(answer.outputs[0].token_ids, 0)

        answers = list(pool.map(ask, [*(samples for samples, _ in found), BROKEN]))
        *right, wrong = answers
        assert right == [ids for _, ids in found]
        assert isinstance(wrong, InvalidRequest)
        assert wrong.field == "encoder_prompt.media"
        with torch.no_grad():
            heard = reference.model.get_encoder()(reference.features(found[0][0])).last_hidden_state[0]
        [embedding] = client.embed(whisper.audio(found[0][0]))
        assert embedding.encoder_tokens == len(heard)
        np.testing.assert_allclose(embedding.embedding, heard.mean(0).numpy(), rtol=1e-5, atol=1e-5)
        detected = client.generate(whisper.audio(found[0][0]), greedy).outputs[0].token_ids
        assert detected[0] == int(reference.model.detect_language(reference.features(found[0][0]))[0])
        pieces = list(client.stream(whisper.audio(found[0][0]), greedy, **asked))
        assert [i for piece in pieces for i in piece.token_ids if i != whisper.EOS] == found[0][1]


def test_llama_with_images(started: tuple[launch.RunningCluster, ServeConfig], tmp_path: Path) -> None:
    """Texts and images from many clients at once, each as in transformers alone. An image that two ask about
    is encoded once; texts go to no encoder."""
    cluster, first = started
    folder = mllama.make_mllama(tmp_path)
    reference = mllama.Reference(folder)
    cases = [mllama.case(seed, images) for seed in range(2) for images in (2, 0, 1)]
    cases.append(Case(f"{mllama.IMAGE_TEXT} {mllama.text(9)}", cases[2].images))
    found = reference.clear(cases, max_new_tokens=8)
    encoded = {tuple(one.tobytes() for one in case.images) for case, _ in found if case.images}
    config = make_config(model=str(folder), tensor_parallel_size=2, max_encoder_tokens=50)
    endpoints = cluster.deploy(on_ports_of(config, first))
    greedy = SamplingParams(temperature=0, max_tokens=8)
    with Client(endpoints.grpc[0]) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: client.generate(one[0].asked, greedy), found))
        assert [answer.outputs[0].token_ids for answer in answers] == [ids for _, ids in found]
        assert metrics(endpoints.http[0])["tandem_encoder_cache_misses_total"] == len(encoded)
        with pytest.raises(InvalidRequest, match="0 media items"):
            client.generate(mllama.IMAGE_TEXT, greedy)


@pytest.mark.parametrize(
    ("placement", "worker"),
    [("disaggregated", ""), ("colocated", "engine_")],
    ids=["encoder", "engine"],
)
def test_twenty_questions_on_one_image_are_one_pass_of_the_vision_model(
    started: tuple[launch.RunningCluster, ServeConfig], tmp_path: Path, placement: Placement, worker: str
) -> None:
    """One after another, and from twenty clients at once, over both protocols. Who sends a damaged image is
    told so, and nobody else."""
    cluster, first = started
    folder = florence.make_florence(tmp_path)
    reference = florence.Reference(folder)
    expected = [
        [reference.generate(text, seed, **florence.PLAIN) for text in florence.QUESTIONS] for seed in (1, 2)
    ]
    # A batch has few of them: they come to the vision model at different times.
    config = make_config(model=str(folder), placement=placement, max_encoder_tokens=300)
    endpoints = cluster.deploy(on_ports_of(config, first))

    def passes() -> tuple[float, float]:
        numbers = metrics(endpoints.http[0])
        encoded, reused = (numbers[f"tandem_{worker}media_{what}_total"] for what in ("encoded", "reused"))
        other = numbers[f"tandem_{'' if worker else 'engine_'}media_encoded_total"]
        assert other == 0, "only one kind of worker encodes"
        return encoded, reused

    with Client(endpoints.grpc[0]) as client, ThreadPoolExecutor(20) as pool:

        def ask(text: str, seed: int) -> Any:
            return client.generate(florence.prompt(text, seed), florence.GREEDY)

        one_by_one = [ask(text, 1) for text in florence.QUESTIONS]
        assert [answer.outputs[0].token_ids for answer in one_by_one] == expected[0]
        assert passes() == (1, 19)
        at_once = list(pool.map(lambda text: ask(text, 2), florence.QUESTIONS))
        assert [answer.outputs[0].token_ids for answer in at_once] == expected[1]
        assert passes() == (2, 38)
        answers = [*one_by_one, *at_once]
        assert {answer.media_tokens for answer in answers} == {florence.POSITIONS}
        # Over HTTP it is the same image, in the bytes that the client makes of it.
        content = [image_part(png(florence.image(1), "image")), text_part("What is this?")]
        body = {"messages": [{"role": "user", "content": content}]}
        said = httpx.post(f"http://{endpoints.http[0]}/v1/chat/completions", json=body, timeout=60).json()
        assert said["usage"]["prompt_tokens_details"]["image_tokens"] == florence.POSITIONS
        assert passes() == (2, 39)
        numbers = metrics(endpoints.http[0])
        assert numbers["tandem_prompt_media_tokens_total"] == 41 * florence.POSITIONS
        assert numbers["tandem_prompt_tokens_total"] == (
            sum(answer.encoder_tokens for answer in answers) + said["usage"]["prompt_tokens"]
        )
        damaged = florence.file(3)[:-900]
        asked = [vision.prompt(file, "<OD>") for file in (florence.file(4), damaged)]
        whole = pool.submit(client.generate, asked[0], florence.GREEDY)
        with pytest.raises(InvalidRequest, match="cannot be decoded") as refused:
            client.generate(asked[1], florence.GREEDY)
        assert refused.value.field == "encoder_prompt.media"
        assert whole.result().outputs
        with pytest.raises(InvalidRequest, match=r"cannot be decoded.*\(in prompt 2 of 2\)") as refused:
            client.embed(asked)
        assert refused.value.field == "encoder_prompts.media"


def test_t5gemma2_with_images(started: tuple[launch.RunningCluster, ServeConfig], tmp_path: Path) -> None:
    """Images within texts, and texts, from many clients at once, each as in transformers alone."""
    cluster, first = started
    folder = t5gemma2.make_t5gemma2(tmp_path)
    found = t5gemma2.Reference(folder).clear(t5gemma2.cases()[:12])
    assert {len(one.images) for one, _ in found} == {0, 1, 2, 3}
    config = make_config(model=str(folder), tensor_parallel_size=2, max_encoder_tokens=90)
    endpoints = cluster.deploy(on_ports_of(config, first))
    greedy = SamplingParams(temperature=0, max_tokens=t5gemma2.TOKENS)
    with Client(endpoints.grpc[0]) as client, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda one: client.generate(one[0].asked, greedy), found))
        assert [answer.outputs[0].token_ids for answer in answers] == [ids for _, ids in found]
        with pytest.raises(InvalidRequest, match="0 media items"):
            client.generate(t5gemma2.IMAGE_TEXT, greedy)


def test_pix2struct(started: tuple[launch.RunningCluster, ServeConfig], tmp_path: Path) -> None:
    """Questions about images of any shape from many clients at once: the workers draw what the ingress has
    measured. A question that is asked twice is encoded once."""
    cluster, first = started
    folder = pix2struct.make_pix2struct(tmp_path, is_vqa=True)
    reference = pix2struct.Reference(folder)
    cases = [(vision.picture(seed, pix2struct.SIZES[seed % 7]), f"What is {seed % 5}?") for seed in range(10)]
    answers = [reference.generate(*one, max_new_tokens=8) for one in cases]
    clear = [reference.lead(*one, ids) > pix2struct.CLEAR for one, ids in zip(cases, answers, strict=True)]
    found = [(*one, ids) for one, ids, sure in zip(cases, answers, clear, strict=True) if sure]
    assert len(found) > 7
    config = make_config(model=str(folder), tensor_parallel_size=2, max_encoder_tokens=60)
    endpoints = cluster.deploy(on_ports_of(config, first))
    greedy = SamplingParams(temperature=0, max_tokens=8)
    with Client(endpoints.grpc[0]) as client, ThreadPoolExecutor(12) as pool:
        twice = [*found, *found[:3]]
        asked = [vision.prompt(image, text) for image, text, _ in twice]
        outputs = list(pool.map(lambda one: client.generate(one, greedy), asked))
        assert [output.outputs[0].token_ids for output in outputs] == [ids for *_, ids in twice]
        assert metrics(endpoints.http[0])["tandem_encoder_cache_misses_total"] == len(found)
        with pytest.raises(InvalidRequest, match="a question") as refused:
            client.generate(vision.prompt(found[0][0]), greedy)
        assert refused.value.field == "encoder_prompt"


@pytest.mark.parametrize(
    ("pair", "tensor_parallel_size"), [("deit-trocr", 2), ("vit-gpt2", 1), ("vit-bert", 1)]
)
def test_vision_encoder_decoders(
    started: tuple[launch.RunningCluster, ServeConfig], tmp_path: Path, pair: str, tensor_parallel_size: int
) -> None:
    """Pictures from many clients at once, over both protocols; one that two send is encoded once."""
    cluster, first = started
    folder = vision.make_vision(tmp_path, pair)
    found = vision.cases(vision.Reference(folder, vision.PAIRS[pair].processor), 8)
    config = make_config(
        model=str(folder), tensor_parallel_size=tensor_parallel_size, max_encoder_tokens=70, max_num_seqs=5
    )
    endpoints = cluster.deploy(on_ports_of(config, first))
    greedy = SamplingParams(temperature=0, max_tokens=vision.TOKENS)
    with (
        Client(endpoints.grpc[0]) as client,
        httpx.Client(base_url=f"http://{endpoints.http[0]}", timeout=60) as http,
        ThreadPoolExecutor(16) as pool,
    ):

        def over_http(image: Any) -> list[int]:
            body = {
                "messages": [{"role": "user", "content": [image_part(image)]}], "temperature": 0,
                "max_tokens": vision.TOKENS, "return_token_ids": True,
            }  # fmt: skip
            said = http.post("/v1/chat/completions", json=body).json()
            ids: list[int] = said["choices"][0]["token_ids"]
            return ids

        files = [vision.png(image) for image, _ in found]
        answers = [pool.submit(client.generate, vision.prompt(file), greedy) for file in files]
        chats = list(pool.map(over_http, files))
        assert [one.result().outputs[0].token_ids for one in answers] == [ids for _, ids in found]
        assert chats == [ids for _, ids in found]
        numbers = metrics(endpoints.http[0])
        assert numbers["tandem_encoder_cache_misses_total"] == len(found), "encoders encode, each image once"


def test_batches_of_pictures(
    started: tuple[launch.RunningCluster, ServeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tandem batch` has a running server answer for a folder, and for a column of a table; a damaged picture
    has its error. Donut's prompt is what its decoder starts from."""
    cluster, first = started
    folder = vision.make_vision(tmp_path / "model", "donut")
    reference = vision.Reference(folder, vision.PAIRS["donut"].processor)
    found = vision.cases(reference, 20)
    endpoints = cluster.deploy(on_ports_of(make_config(model=str(folder), max_encoder_tokens=40), first))
    # Ray is there for the cluster: the command, which in a terminal starts its own, works on it.
    monkeypatch.setattr("tandem.cluster.start.ray_alone", lambda _: nullcontext())

    def answers(source: Path, refused: int, *options: str) -> list[dict[str, Any]]:
        sink = tmp_path / f"{source.name}.jsonl"
        command = ["batch", str(source), str(sink), "--server", endpoints.grpc[0], *options]
        done = CliRunner().invoke(app, [*command, "-p", "temperature=0"])
        assert done.exit_code == (1 if refused else 0), done.output
        return [json.loads(line) for line in sink.read_text().splitlines()]

    pages = tmp_path / "pages"
    for number, (image, _) in enumerate(found):
        place = pages / f"{number % 3}" / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)
    (pages / "damaged.png").write_bytes(vision.png(vision.picture(1))[:-40])
    (pages / "notes.txt").write_text("no picture")
    *said, damaged = answers(pages, 1, "--max-tokens", str(vision.TOKENS))
    assert [one["id"] for one in said] == sorted(f"{number % 3}/{number:02}.png" for number in range(20))
    known = word_tokenizer(VOCAB)
    for one in said:
        _, ids = found[int(Path(one["id"]).stem)]
        (answer,) = one["outputs"]
        assert (answer["text"], answer["tokens"]) == (known.decode(ids, skip_special_tokens=True), len(ids))
    assert (damaged["id"], damaged["error"]["param"]) == ("damaged.png", "image")

    # As data sets hold them; a line's own prompt goes before the command's.
    prompts = ["ba", "bi bo"]
    table = pa.table(
        {
            "scan": [{"bytes": vision.png(image), "path": None} for image, _ in found[:6]],
            "prompt": [prompts[1] if number % 2 else None for number in range(6)],
            "label": list(range(6)),
        }
    )
    pq.write_table(table, tmp_path / "scans.parquet")
    said = answers(
        tmp_path / "scans.parquet", 0, "--image-column", "scan", "--prompt", prompts[0], "--max-tokens", "5"
    )
    assert [one["label"] for one in said] == list(range(6))
    for number, (one, (image, _)) in enumerate(zip(said, found[:6], strict=True)):
        ids = known(prompts[number % 2], add_special_tokens=False)["input_ids"]
        expected = reference.generate(image, ids, max_new_tokens=5, do_sample=False)
        (answer,) = one["outputs"]
        assert answer["text"].strip() == known.decode(expected, skip_special_tokens=True)
        assert answer["parsed"] == DocumentFields(known)([*ids, *expected])


def test_transcriptions(started: tuple[launch.RunningCluster, ServeConfig], tmp_path: Path) -> None:
    """Long recordings and short ones at once, each as `LLM` has it alone; every window is encoded once."""
    cluster, first = started
    folder = whisper.make_whisper(tmp_path, "base", times=True)
    lengths = (0.7, 3.3, 5.2)
    recordings = [(whisper.sound(number, seconds), whisper.RATE) for number, seconds in enumerate(lengths)]
    asked: TranscriptionOptions = {
        "temperature": (0.0, 0.4), "logprob_threshold": -0.25, "seed": 1, "timestamps": "word",
        "semantics": "openai",
    }  # fmt: skip
    with LLM(str(folder), dtype="float32") as llm:
        expected = llm.transcribe([*recordings], **asked)
        encoded = llm.stats().encoded_tokens
    config = make_config(model=str(folder), tensor_parallel_size=2, max_encoder_tokens=200)
    endpoints = cluster.deploy(on_ports_of(config, first))
    with Client(endpoints.grpc[0]) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: client.transcribe(one, **asked), recordings))
        assert list(map(said, answers)) == list(map(said, expected))
        numbers = metrics(endpoints.http[0])
        assert numbers["tandem_engine_encoded_tokens_total"] == encoded
        assert numbers["tandem_transcription_windows_total"] == encoded / 50
        assert numbers["tandem_transcribed_audio_seconds_total"] == pytest.approx(sum(lengths))
        *deltas, last = client.stream_transcription(recordings[2], **asked)
        assert [one.transcription for one in deltas] == [None] * len(deltas)
        assert last.transcription == answers[2]
        assert [segment for one in (*deltas, last) for segment in one.segments] == answers[2].segments
        assert "".join(one.text for one in (*deltas, last)) == answers[2].text
        with pytest.raises(InvalidRequest) as refused:
            client.transcribe(BROKEN)
        assert refused.value.field == "audio"
        speaks_live(client, recordings[0][0])


def speaks_live(client: Client, samples: Any) -> None:
    """Turn by turn over a stream in both directions, as soon as there is something to answer."""
    pcm = (samples * 32767).astype("<i2").tobytes()
    heard: list[int] = []

    def sound() -> Iterator[Sound]:
        for turn in range(2):
            yield pcm
            yield "commit"
            while turn not in heard:  # the answer to a turn comes while the speaker is silent
                time.sleep(0.01)

    texts = ["", ""]
    params = LiveParams(turn_detection=None, language="fr", step_ms=300)
    for delta in client.transcribe_live(sound(), params):
        texts[delta.turn] += delta.final
        if delta.end_s is not None:
            heard.append(delta.turn)
    assert heard == [0, 1]
    assert all(texts)
    with pytest.raises(InvalidRequest) as refused:
        list(client.transcribe_live([pcm[:3]]))
    assert refused.value.field == "pcm"


def said(answer: Transcription) -> tuple[object, ...]:
    """All of an answer but the numbers that depend on the order of sums."""
    times = [
        (one.start_s, one.end_s, one.token_ids, one.temperature, [word.word for word in one.words or ()])
        for one in answer.segments
    ]
    return answer.text, answer.language, answer.duration_s, times
