"""What a benchmark says of a server that is there and does not let it in, and of files for TLS and API keys that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.commands import benchmark_command
from benchmarks.served import ServerConnection
from serving.errors import RequestError, ServerError
from serving.options import ServerAddress


class Guarded(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers the first calls, and refuses all others as the front does."""

    def __init__(self, allowed: int, status: grpc.StatusCode, message: str) -> None:
        self.left, self.status, self.message = allowed, status, message

    def _let_in(self, context: grpc.ServicerContext) -> None:
        self.left -= 1
        if self.left < 0:
            context.abort(self.status, self.message)

    def ServerReady(self, _request: object, context: grpc.ServicerContext) -> object:  # noqa: N802 - the name is Triton's
        self._let_in(context)
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelReady(self, _request: object, context: grpc.ServicerContext) -> object:  # noqa: N802
        self._let_in(context)
        return service_pb2.ModelReadyResponse(ready=True)

    def ServerMetadata(self, _request: object, context: grpc.ServicerContext) -> object:  # noqa: N802
        self._let_in(context)
        return service_pb2.ServerMetadataResponse(name="triton", version="2")

    def ModelConfig(self, _request: object, context: grpc.ServicerContext) -> object:  # noqa: N802
        self._let_in(context)
        return service_pb2.ModelConfigResponse()

    def ModelStatistics(self, _request: object, context: grpc.ServicerContext) -> object:  # noqa: N802
        self._let_in(context)
        return service_pb2.ModelStatisticsResponse()


@pytest.fixture
def serve() -> Iterator[Callable[..., ServerAddress]]:
    servers = []

    def start(allowed: int, status: grpc.StatusCode, message: str) -> ServerAddress:
        server = grpc.server(ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Guarded(allowed, status, message), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return ServerAddress(grpc_port=port)

    yield start
    for server in servers:
        server.stop(None)


@pytest.mark.parametrize("allowed", range(4))
@pytest.mark.parametrize(
    ("status", "hint"),
    [(grpc.StatusCode.UNAUTHENTICATED, "give a valid API key"), (grpc.StatusCode.PERMISSION_DENIED, "the server closes this")],
)
def test_a_refusal_is_told_as_it_is(serve: Callable[..., ServerAddress], allowed: int, status: grpc.StatusCode, hint: str) -> None:
    address = serve(allowed, status, "this server wants an API key")
    with pytest.raises(RequestError, match="this server wants an API key") as caught:
        ServerConnection(address, "words")
    assert caught.value.status == status.name and caught.value.hint.startswith(hint)


def test_a_later_refusal_is_told_too(serve: Callable[..., ServerAddress]) -> None:
    connection = ServerConnection(serve(4, grpc.StatusCode.UNAUTHENTICATED, "the key has changed"), "words")
    with pytest.raises(RequestError, match="the key has changed"):
        connection.statistics()
    connection.close()


def test_a_server_that_does_not_answer_in_time_is_not_there(serve: Callable[..., ServerAddress]) -> None:
    with pytest.raises(ServerError, match="no server answers at"):
        ServerConnection(serve(0, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"), "words")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tls-certificate", "broken.pem", "--tls-key", "broken.pem"], "must be PEM files that belong together"),
        (["--tls-ca", "broken.pem"], "broken.pem"),
        (["--tls-certificate", "broken.pem"], "key"),
    ],
)
def test_files_that_cannot_be_used_are_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.pem").write_text("no certificate", encoding="utf-8")
    found = CliRunner().invoke(benchmark_command, ["words", *flags])
    assert found.exit_code == 2, found.output
    assert isinstance(found.exception, SystemExit) and said in found.output
