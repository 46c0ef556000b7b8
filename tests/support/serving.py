"""A real cluster for tests: Ray, Serve, gRPC and HTTP on loopback."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import grpc
import httpx
from models import load_reference, reference_greedy

from tandem.cluster.config import ServeConfig
from tandem.cluster.endpoints import Endpoints
from tandem.v1 import inference_pb2 as pb
from tandem.v1 import inference_pb2_grpc as pb_grpc

__all__ = ["Stub", "free_port", "ids_request", "load_reference", "make_config", "reference_greedy"]

Stub = pb_grpc.InferenceServiceStub


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_config(**options: Any) -> ServeConfig:
    """A small cluster on this machine's CPU that checks its invariants after every step."""
    values: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "http_port": free_port(),
        "grpc_port": free_port(),
        "max_num_seqs": 16,
        "drain_timeout_s": 60.0,
        "check_invariants": True,
    }
    return ServeConfig(**(values | options))


def on_ports_of(config: ServeConfig, other: ServeConfig) -> ServeConfig:
    """`config` for a cluster that was started with `other`."""
    return dataclasses.replace(config, http_port=other.http_port, grpc_port=other.grpc_port)


def channel(endpoints: Endpoints) -> grpc.Channel:
    return grpc.insecure_channel(endpoints.grpc[0])


def sampling_params(**values: Any) -> pb.SamplingParams:
    """From parameters that stand side by side, as in HTTP; they may be bad ones."""
    shared = values.keys() & pb.DecodingParams.DESCRIPTOR.fields_by_name.keys()
    own = {name: value for name, value in values.items() if name not in shared}
    return pb.SamplingParams(decoding={name: values[name] for name in shared}, **own)


def ids_request(ids: list[int], **params: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        encoder_prompt=pb.EncoderPrompt(token_ids=pb.TokenIds(ids=ids)),
        sampling_params=sampling_params(**params),
    )


def text_request(text: str, **params: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        encoder_prompt=pb.EncoderPrompt(text=text), sampling_params=sampling_params(**params)
    )


def text_stream(text: str, **params: Any) -> pb.GenerateStreamRequest:
    return pb.GenerateStreamRequest(
        encoder_prompt=pb.EncoderPrompt(text=text), sampling_params=sampling_params(**params)
    )


def descendants(ancestor: int | None = None) -> dict[int, str]:
    """What a process, by default this one, has started, directly or not: command lines by process id."""
    root = os.getpid() if ancestor is None else ancestor
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listing.stdout.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, *_ in rows}

    def ours(pid: int) -> bool:
        while pid > 1 and pid != root:
            pid = parents.get(pid, 0)
        return pid == root

    return {int(pid): args[0] for pid, _, *args in rows if args and ours(int(pid))}


def pids(class_name: str, ancestor: int | None = None) -> set[int]:
    """The processes that run an actor of a class, of this process's cluster or the ancestor's. Ray's state
    API needs its dashboard."""
    return {pid for pid, command in descendants(ancestor).items() if f"ray::{class_name}" in command}


def eventually(condition: Callable[[], bool], otherwise: str, within_s: float = 180.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def metrics(address: str) -> dict[str, float]:
    """The values of /metrics by name, those of several engines or of several reasons together."""
    values: dict[str, float] = defaultdict(float)
    for line in httpx.get(f"http://{address}/metrics").text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name.partition("{")[0]] += float(value)
    return values
