"""Who can reach what: the server's address is the only one, and Ray's own ports want a token."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

import grpc
import pytest
import ray
from serving import descendants

from .conftest import Server

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_it_listens_at_its_address_only(server: Server, protocol: str) -> None:
    (address,) = getattr(server.endpoints, protocol)
    host, port = address.split(":")
    socket.create_connection((host, int(port)), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=5)


def listening() -> set[str]:
    """Where this process' children, Ray and Serve, listen: addresses as in the kernel's tables. Serve's
    replicas, which talk to each other on all interfaces, and ask for a token there, are left out."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # listens
                sockets[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    found = set()
    for pid in descendants():
        with contextlib.suppress(OSError):  # it ends meanwhile
            if Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::ServeReplica"):
                continue
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(sockets.get(str(file.readlink()), ""))
    return found - {""}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's tables")
@pytest.mark.usefixtures("server")
def test_no_port_is_open_to_other_machines() -> None:
    found = listening()
    assert found
    assert found <= {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1


@pytest.mark.usefixtures("server")
def test_the_token_is_its_users_own() -> None:
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        assert not token.stat().st_mode & 0o077


@pytest.mark.usefixtures("server")
def test_rays_control_plane_asks_for_a_token() -> None:
    with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", bytes, bytes)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20)
    error: grpc.Call = caught.value  # type: ignore[assignment]
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
