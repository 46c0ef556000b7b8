"""HTTP and gRPC speak TLS where the server has a certificate, and nothing else."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from certificates import write_certificate
from fake_app import answering
from listening_here import grpc_server, http_server
from serving import free_port

from tandem import AsyncClient, DeadlineExceeded, Unavailable
from tandem.cluster.config import ServeConfig
from tandem.cluster.endpoints import Endpoints, serving
from tandem.cluster.listening import Listening
from tandem.cluster.start import start_ray
from tandem.errors import InvalidRequest
from tandem.v1 import inference_pb2 as pb


def handlers(**_: object) -> Any:
    async def answer(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        assert ("authorization", "Bearer secret") in tuple(context.invocation_metadata() or ())
        return pb.ListModelsResponse(models=[pb.Model(id="m")]).SerializeToString()

    return answer


async def test_both_protocols_speak_it(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    listening = Listening(tls_cert=str(certificate), tls_key=str(key))
    trusted = ssl.create_default_context(cafile=str(certificate))
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    async with (
        http_server(answering, listening, ssl_certfile=str(certificate), ssl_keyfile=str(key)) as http_port,
        grpc_server(listening, handlers, "tandem.protocol.rpc.add_inference_service") as grpc_port,
    ):
        async with httpx.AsyncClient(verify=trusted) as client:
            assert (await client.get(f"https://localhost:{http_port}/")).text == "0 0"
            for _ in range(2):  # the bounds hold, too
                refused = await client.get(f"https://localhost:{http_port}/", headers={"x": "a" * 70_000})
                assert refused.status_code == 431
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://localhost:{http_port}/")
        async with AsyncClient(
            f"localhost:{grpc_port}", credentials=credentials, api_key="secret", timeout_s=5
        ) as client:
            assert [model.id for model in await client.models()] == ["m"]
        async with AsyncClient(f"localhost:{grpc_port}", timeout_s=3) as client:
            with pytest.raises((Unavailable, DeadlineExceeded)):  # it tries again until one or the other
                await client.models()
        endpoints = Endpoints((f"127.0.0.1:{http_port}",), (f"127.0.0.1:{grpc_port}",))
        assert await asyncio.to_thread(serving, endpoints, "127.0.0.1", tls=True)
        assert not await asyncio.to_thread(serving, endpoints, "127.0.0.1")
        none = Endpoints((), (f"127.0.0.1:{free_port()}",))
        assert not await asyncio.to_thread(serving, none, "127.0.0.1", tls=True)


@pytest.mark.parametrize("broken", ["cert.pem", "key.pem", "both"])
def test_a_certificate_that_cannot_be_used_is_refused_before_anything_starts(
    tmp_path: Path, broken: str
) -> None:
    write_certificate(tmp_path)
    for name in ("cert.pem", "key.pem"):
        if broken in (name, "both"):
            (tmp_path / name).write_text("-----BEGIN NONSENSE-----")
    config = ServeConfig(tls_cert=str(tmp_path / "cert.pem"), tls_key=str(tmp_path / "key.pem"))
    with pytest.raises(InvalidRequest, match=r"cert\.pem") as caught:
        start_ray(config, None)
    assert caught.value.field == "tls_cert"


def test_a_certificate_has_a_key() -> None:
    with pytest.raises(InvalidRequest, match="goes with tls_key"):
        ServeConfig(tls_cert="cert.pem")
