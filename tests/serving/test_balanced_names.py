"""Requests to a name that has several addresses go to all of them in turn. A name server of the test answers for the name."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from serving.client import TritonPipeline
from serving.errors import RequestError
from tests.helpers.surroundings import free_port
from tests.serving.test_connection import Script, Servicer, connection

HOSTS = ("127.0.0.1", "127.0.0.2")
NAME = "reviews.example"


@contextlib.contextmanager
def name_server(hosts: tuple[str, ...]) -> Iterator[int]:
    """Answer each question for an IPv4 address with these hosts, and others with nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        threading.Thread(target=_answer, args=[server, hosts], daemon=True).start()
        yield server.getsockname()[1]
        server.sendto(b"", server.getsockname())  # ends the thread


def _answer(server: socket.socket, hosts: tuple[str, ...]) -> None:
    while len((received := server.recvfrom(512))[0]) > 12:
        query, client = received
        end = query.index(b"\0", 12) + 5
        question, kind = query[12:end], struct.unpack("!H", query[end - 4 : end - 2])[0]
        found = [b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 1, 4) + socket.inet_aton(host) for host in hosts if kind == 1]
        header = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
        server.sendto(header + question + b"".join(found), client)


def test_requests_go_to_all_addresses_in_turn() -> None:
    scripts, port = [Script() for _ in HOSTS], free_port()

    async def run(url: str) -> None:
        servers = []
        for script, host in zip(scripts, HOSTS, strict=True):
            servers.append(grpc.aio.server())
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(script), servers[-1])
            servers[-1].add_insecure_port(f"{host}:{port}")
            await servers[-1].start()
        asking = connection(url, "grpc")
        try:
            for _ in range(20):
                await asking.model_config("x")
        finally:
            await asking.close()
            for server in servers:
                await server.stop(None)

    with name_server(HOSTS) as names:
        asyncio.run(run(f"dns://127.0.0.1:{names}/{NAME}:{port}"))
    counts = [len(script.moments) for script in scripts]
    assert sum(counts) == 20 and min(counts) >= 8, counts


@pytest.mark.parametrize(
    ("url", "protocol"),
    [("dns:///there:8000", "http"), ("dns:///", "grpc"), ("dns:///there:0", "grpc"), ("http://there:1", "grpc")],
)
def test_what_is_no_address_is_refused(url: str, protocol: str) -> None:
    with (
        TritonPipeline("x", url=url, protocol=protocol) as pipe,  # type: ignore[arg-type]
        pytest.raises(RequestError, match="is not host:port"),
    ):
        pipe("text")
