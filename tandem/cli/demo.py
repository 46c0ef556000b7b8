"""`tandem demo`: a cluster on this machine; real sentences, a recording and a picture; what happened."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from tandem.cli.options import API_KEY_ENV, errors_shown
from tandem.inputs import Prompt
from tandem.params import SamplingParams
from tandem.quickstart_ocr import LINE
from tandem.quickstart_speech import CLIP

if TYPE_CHECKING:
    from tandem.client import Client

_SENTENCES: Final = [
    "Good night.",
    "I am tired.",
    "Where do you live?",
    "He is my brother.",
    "I lost my keys.",
    "We want to go home.",
]
_LANGUAGES: Final = {"French": "fr", "German": "de"}
_STREAMED: Final = "translate English to French: Where is the train station?"


def demo() -> None:
    """Start a cluster with the bundled models, send it sentences, a recording and a picture, and stop it."""
    console = Console()
    with errors_shown():
        from tandem.client import Client
        from tandem.cluster import launch, start
        from tandem.cluster.config import ServeConfig

        # Free ports: a demo must not fail because a server runs already.
        http_port, grpc_port = start.free_ports("127.0.0.1", 2)
        config = ServeConfig(http_port=http_port, grpc_port=grpc_port)
        console.print("Starting Ray, an ingress, an encoder and a decoder …", style="dim")
        started = time.monotonic()
        with launch.serve(config) as cluster:
            endpoints = cluster.endpoints()
            console.print(f"Ready in {time.monotonic() - started:.0f} s.\n", style="dim", highlight=False)
            api_key = os.environ.get(API_KEY_ENV)  # the cluster asks for it, if it is set
            with Client(endpoints.grpc[0], api_key=api_key) as client:
                _many(console, client)
                _stream(console, client)
            _http(console, f"http://{endpoints.http[0]}", api_key)
            for model, shown in {"quickstart-speech": _transcribe, "quickstart-ocr": _read}.items():
                console.print(f"{model} in the place of the model before it …", style="dim")
                started = time.monotonic()
                endpoints = cluster.deploy(replace(config, model=model))
                console.print(f"Ready in {time.monotonic() - started:.0f} s.\n", style="dim", highlight=False)
                with Client(endpoints.grpc[0], api_key=api_key) as client:
                    shown(console, client)
            console.print("Stopping …", style="dim")
        console.print("Done. `tandem serve` starts the same cluster to stay.")


def _many(console: Console, client: Client) -> None:
    prompts: list[Prompt] = [
        f"translate English to {language}: {sentence}" for sentence in _SENTENCES for language in _LANGUAGES
    ]
    started = time.monotonic()
    outputs = client.generate_many(prompts, SamplingParams(temperature=0))
    seconds = time.monotonic() - started
    table = Table("English", *_LANGUAGES, title=f"gRPC: {len(prompts)} requests at once")
    texts = [output.outputs[0].text for output in outputs]
    for row, sentence in enumerate(_SENTENCES):
        table.add_row(sentence, *texts[row * len(_LANGUAGES) : (row + 1) * len(_LANGUAGES)])
    console.print(table)
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    console.print(f"{tokens} tokens in {seconds:.2f} s.\n", style="dim", highlight=False)


def _stream(console: Console, client: Client) -> None:
    console.print(f"gRPC, streamed: {_STREAMED!r}", highlight=False)
    for piece in client.stream(_STREAMED, SamplingParams(temperature=0)):
        end = "│" if piece.finish_reason is None else "\n"
        console.print(piece.text, style="green", end=end, markup=False, emoji=False)
    console.print()


def _http(console: Console, base: str, api_key: str | None) -> None:
    body = {"q": "I am happy.", "source": "en", "target": "de"}
    console.print(f"HTTP: POST {base}/translate {json.dumps(body)}", highlight=False)
    headers = {"Content-Type": "application/json"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    request = urllib.request.Request(f"{base}/translate", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        console.print_json(answer.read().decode())


def _transcribe(console: Console, client: Client) -> None:
    console.print(f"gRPC: a recording, {CLIP.name}", highlight=False)
    started = time.monotonic()
    answer = client.transcribe(CLIP)
    seconds = time.monotonic() - started
    for segment in answer.segments:
        times = f"{segment.start_s:.2f} to {segment.end_s:.2f} s:"
        console.print(f"{times} [green]{segment.text.strip()}[/green]", highlight=False)
    console.print(f"{answer.duration_s:.1f} s of audio in {seconds:.2f} s.\n", style="dim", highlight=False)


def _read(console: Console, client: Client) -> None:
    console.print(f"gRPC: a picture of a line, {LINE.name}", highlight=False)
    prompt: Prompt = {"prompt": "", "multi_modal_data": {"image": LINE}}
    text = client.generate(prompt, SamplingParams(temperature=0)).outputs[0].text
    console.print(text + "\n", style="green", highlight=False, markup=False, emoji=False)
