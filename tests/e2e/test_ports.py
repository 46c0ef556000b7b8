"""Who can reach what: the server's address is the only one, and Ray's own ports want a token."""

from __future__ import annotations

import socket

import grpc
import pytest
import ray

from .conftest import Server

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_it_listens_at_its_address_only(server: Server, protocol: str) -> None:
    (address,) = getattr(server.endpoints, protocol)
    host, port = address.split(":")
    socket.create_connection((host, int(port)), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=5)


@pytest.mark.usefixtures("server")
def test_rays_control_plane_asks_for_a_token() -> None:
    with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", bytes, bytes)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20)
    error: grpc.Call = caught.value  # type: ignore[assignment]
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
