"""A server that wants API keys and certificates of clients, while keys and certificates are exchanged."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from benchmarks.load import LoadOptions, find_perf_analyzer, run_load
from benchmarks.served import ServerConnection
from export.cli import main
from serving.access_options import AccessOptions
from serving.async_client import AsyncTritonPipeline
from serving.client import TritonPipeline
from serving.errors import RequestError, SetupError
from serving.install import triton_environment
from serving.options import ServeOptions
from serving.probe import find_probes
from serving.runtime.types import Tensor
from serving.server_record import log_file
from tests.helpers.front_requests import ask
from tests.helpers.servers import running, serve_options

pytestmark = pytest.mark.server
PROTOCOLS = ["grpc", "http"]
KEY, NEXT_KEY = "the-first-key-of-this-test-0123456789", "the-next-key-of-this-test-9876543210"
EXCHANGED_SECONDS = 10
"""How long it may take until the server uses what was exchanged."""
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
CONNECTION_SECONDS = 1


def write_key(path: Path, *keys: str) -> None:
    new = path.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text("# of the tests\n" + "".join(f"{key}\n" for key in keys), encoding="utf-8")
    new.rename(path)


def write_certificate(authority: trustme.CA, folder: Path, name: str, **dates: datetime) -> None:
    """A certificate and its key, as NAME.pem and NAME-key.pem."""
    issued = authority.issue_cert("127.0.0.1", "localhost", **dates)
    for path, content in (
        (folder / f"{name}-key.pem", issued.private_key_pem.bytes()),
        (folder / f"{name}.pem", b"".join(part.bytes() for part in issued.cert_chain_pems)),
    ):
        path.with_suffix(".new").write_bytes(content)
        path.with_suffix(".new").rename(path)


@dataclass(frozen=True)
class Secured:
    """The server and the files of it and of its clients."""

    options: ServeOptions
    authority: trustme.CA
    folder: Path

    def arguments(self, protocol: str, **changes: object) -> dict[str, Any]:
        """The arguments of a client that may ask."""
        url = self.options.grpc_url if protocol == "grpc" else f"127.0.0.1:{self.options.http_port}"
        files = {
            name: self.folder / f"{file}.pem" for name, file in (("ca", "ca"), ("certificate", "client"), ("key", "client-key"))
        }
        return {"url": url, "protocol": protocol, "api_key": KEY, **files, **changes}

    def files(self, names: dict[str, Any]) -> dict[str, Any]:
        """Arguments that are files, by their names."""
        return {name: self.folder / value if isinstance(value, str) else value for name, value in names.items()}

    def refusal(self, protocol: str, **changes: object) -> RequestError:
        """Why a client is refused, at once."""
        begun = time.monotonic()
        with warnings.catch_warnings():
            # aiohttp leaves the sockets of broken TLS connections to the collector
            warnings.simplefilter("ignore", ResourceWarning)
            with TritonPipeline("ragged", **self.arguments(protocol, **changes)) as pipe, pytest.raises(RequestError) as caught:
                pipe("a warm film")
            gc.collect()
        assert caught.value.status == "UNAVAILABLE" or time.monotonic() - begun < 3, "it is not asked again and again"
        return caught.value

    def log(self) -> str:
        return log_file(self.options.http_port).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def secured(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder, authority, of_clients = tmp_path_factory.mktemp("secrets"), trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    of_clients.cert_pem.write_to_path(folder / "client-ca.pem")
    write_certificate(authority, folder, "server")
    write_certificate(of_clients, folder, "client")
    write_certificate(authority, folder, "stranger")  # its authority is not one of clients
    write_key(folder / "keys", KEY)
    options = replace(
        serve_options(small),
        tls_certificate=folder / "server.pem",
        tls_key=folder / "server-key.pem",
        tls_client_ca=folder / "client-ca.pem",
        api_key_file=folder / "keys",
        grpc_max_connection_age=CONNECTION_SECONDS,
    )
    with running(options):
        yield Secured(options, authority, folder)


def within(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + EXCHANGED_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def answers(secured: Secured, protocol: str, **changes: object) -> bool:
    try:
        with TritonPipeline("ragged", **secured.arguments(protocol, retries=0, **changes)) as pipe:
            return bool(pipe("a warm film")[0]["label"])
    except RequestError:
        return False


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_clients_that_may_ask(secured: Secured, protocol: str) -> None:
    assert answers(secured, protocol)

    async def asynchronous() -> Any:
        async with AsyncTritonPipeline("ragged", **secured.arguments(protocol)) as pipe:
            return await pipe("a warm film")

    assert asyncio.run(asynchronous())[0]["label"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_command_line_asks_with_files(secured: Secured, protocol: str) -> None:
    given = secured.arguments(protocol)
    flags = ["--url", given["url"], "--protocol", protocol, "--tls-ca", given["ca"], "--api-key-file", secured.folder / "keys"]
    flags += ["--tls-certificate", given["certificate"], "--tls-key", given["key"], "--json"]
    command = [sys.executable, "-m", "export.cli", "predict", "ragged", "a warm film", *map(str, flags)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["label"]
    assert KEY not in " ".join(command)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_benchmark_reaches_it(secured: Secured, protocol: Any) -> None:
    """Its own client, and the load generator."""
    given = secured.arguments(protocol)
    access = AccessOptions(**{name: given[name] for name in ("ca", "certificate", "key")}, api_key_file=secured.folder / "keys")
    with contextlib.closing(ServerConnection(secured.options, "ragged", access)) as server:
        assert "ragged" in server.statistics()
        assert len(server.ask([["a warm film"]], {})["LABEL"]) == 1
        options = LoadOptions(
            model="ragged", url=server.url(protocol), protocol=protocol, concurrency=2, duration=0.5, access=access
        )
    found = run_load(find_perf_analyzer(triton_environment()), options, [Tensor("TEXT", "TYPE_STRING")], [["fine"], ["dull"]])
    assert found.requests > 2


def test_releases_are_closed_to_clients(secured: Secured, capsys: pytest.CaptureFixture[str]) -> None:
    given = secured.arguments("grpc")
    flags = ["--url", given["url"], "--tls-ca", given["ca"], "--api-key-file", secured.folder / "keys"]
    flags += ["--tls-certificate", given["certificate"], "--tls-key", given["key"], "--repository", secured.options.repository]
    assert main(["status", *map(str, flags)]) == 1
    assert f"this part of the API of {given['url']} is closed (if tritonize has started " in capsys.readouterr().err


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("key", "said"), [("", "this server needs an API key"), ("not-the-key-of-this-test", "is not valid")])
def test_a_missing_key_and_a_wrong_one(secured: Secured, protocol: str, key: str, said: str) -> None:
    error = secured.refusal(protocol, api_key=key)
    assert error.status == "UNAUTHENTICATED" and said in error.message
    assert "api_key" in error.hint


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("changes", [{"ca": "client-ca.pem"}, {"ca": None, "ssl": True}], ids=["another CA", "CAs of this machine"])
def test_a_server_that_the_client_does_not_trust(secured: Secured, protocol: str, changes: dict[str, Any]) -> None:
    error = secured.refusal(protocol, **secured.files(changes))
    assert (error.status, error.message.partition(":")[0]) == ("FAILED_PRECONDITION", "no TLS connection to 127.0.0.1")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_cas_of_this_machine_are_trusted(secured: Secured, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gRPC too, which has a list of its own."""
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.folder / "ca.pem"))
    assert answers(secured, protocol, ca=None, ssl=True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "changes",
    [{"certificate": None, "key": None}, {"certificate": "stranger.pem", "key": "stranger-key.pem"}],
    ids=["no certificate", "of another authority"],
)
def test_a_client_that_the_server_does_not_trust(secured: Secured, protocol: str, changes: dict[str, Any]) -> None:
    """The server tells why after the handshake: over HTTP, a client that is still writing only sees that the connection breaks."""
    error = secured.refusal(protocol, **secured.files(changes))
    assert error.status == "FAILED_PRECONDITION" or (protocol == "http" and error.status == "UNAVAILABLE"), error
    assert "certificate" in error.hint


def test_the_probes_of_the_keeper_need_no_key(secured: Secured) -> None:
    status, text, _ = ask(f"{secured.options.health_url}/readyz")
    assert (status, json.loads(text)["ensembles"]) == (200, ["ragged"])
    assert [probe.ensemble for probe in find_probes(secured.options.repository)] == ["ragged"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_keys_are_exchanged_without_an_interruption(secured: Secured, protocol: str) -> None:
    """The steps of a rotation: the server takes both, the client sends the new one, the server takes it alone."""
    own = secured.folder / f"key-of-a-client-{protocol}"
    write_key(own, KEY)
    arguments = secured.arguments(protocol, api_key=None, api_key_file=own, retries=0)
    with TritonPipeline("ragged", **arguments) as pipe:
        pipe("before")
        write_key(secured.folder / "keys", NEXT_KEY, KEY)
        within(lambda: answers(secured, protocol, api_key=NEXT_KEY), "the new key is taken")
        pipe("with the old one")
        write_key(own, NEXT_KEY)
        pipe("with the new one")
        write_key(secured.folder / "keys", NEXT_KEY)
        within(lambda: not answers(secured, protocol), "the old key is not taken any more")
        pipe("with the new one")
    write_key(secured.folder / "keys", KEY)
    within(lambda: answers(secured, protocol), "as before")


def test_a_file_of_keys_that_cannot_be_used_changes_nothing(secured: Secured) -> None:
    keys = secured.folder / "keys"
    for content, mode, said in (("", 0o600, "holds no API key"), (f"{NEXT_KEY}\n", 0o644, "open to other users (mode 0644)")):
        keys.write_text(content, encoding="utf-8")
        keys.chmod(mode)
        within(lambda said=said: said in secured.log(), said)  # type: ignore[misc]
        assert answers(secured, "http") and not answers(secured, "http", api_key=NEXT_KEY)
    assert "what was read before stays in use" in secured.log() and NEXT_KEY not in secured.log()
    write_key(keys, KEY)
    within(lambda: answers(secured, "http"), "as before")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_certificates_are_exchanged(secured: Secured, protocol: str) -> None:
    """First for one that has expired, which the client refuses, then for a good one."""
    write_certificate(secured.authority, secured.folder, "server", not_before=LONG_AGO, not_after=LONG_AGO.replace(year=2021))
    within(lambda: not answers(secured, protocol), "the expired certificate is used")
    error = secured.refusal(protocol)
    assert error.status == "FAILED_PRECONDITION" and "expired" in error.message.lower()
    write_certificate(secured.authority, secured.folder, "server")
    within(lambda: answers(secured, protocol), "the new certificate is used")


def test_grpc_clients_connect_anew_without_an_error(secured: Secured) -> None:
    def connections() -> float:
        lines = ask(f"{secured.options.metrics_url}/front")[1].splitlines()
        name = 'envoy_http_downstream_cx_total{envoy_http_conn_manager_prefix="grpc"} '
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before, begun, answered = connections(), time.monotonic(), 0
    with TritonPipeline("ragged", **secured.arguments("grpc", retries=0)) as pipe:
        while time.monotonic() - begun < 10 * CONNECTION_SECONDS and connections() < before + 3:
            answered += len(pipe(["a warm film"] * 8))
    assert connections() >= before + 3
    assert answered > 8


def test_files_that_cannot_be_used_are_refused_at_the_start(secured: Secured, tmp_path: Path) -> None:
    from serving.front import start_front

    (tmp_path / "nothing.pem").write_text("nothing")
    options = replace(secured.options, http_port=1, grpc_port=2, metrics_port=3)
    for changes, said in (
        ({"tls_key": None}, "TLS needs a certificate and its key"),
        ({"tls_key": None, "tls_certificate": None}, "--tls-client-ca has no effect without TLS"),
        ({"tls_certificate": tmp_path / "nothing.pem"}, "cannot use the TLS certificate"),
        ({"tls_key": secured.folder / "client-key.pem"}, "cannot use the TLS certificate"),
        ({"tls_client_ca": tmp_path / "nothing.pem"}, "cannot use the certificates in"),
    ):
        with pytest.raises(SetupError, match=said) as caught, start_front(replace(options, **changes), log=print):  # type: ignore[arg-type]
            pass
        assert "\n" not in caught.value.message
