"""Options of the proxy: TLS, keys, a short queue, an access log, where it listens, and what it refuses to start with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import trustme
from tritonclient.utils import InferenceServerException

from serving.api_keys import ApiKeyFile, read_api_keys
from serving.background import start_detached, stop
from serving.client import TritonPipeline
from serving.errors import RequestError, SetupError
from serving.front.envoy import find_envoy, needed_in_flight
from serving.front.replies import FULL
from serving.options import ServeOptions
from serving.server_record import log_file
from tests.helpers.front_requests import ask, body, error_of, tensor
from tests.helpers.servers import running, serve_options

KEY = "a-key-of-this-test-0123456789"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(folder / "certificate.pem", append=True)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "keys").write_text(f"# of the tests\n\n{KEY}\nanother-key-of-this-test-987654321\n")
    (folder / "keys").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def guarded(small: Path, files: Path) -> Iterator[ServeOptions]:
    options = replace(
        serve_options(small),
        tls_certificate=files / "certificate.pem",
        tls_key=files / "key.pem",
        api_key_file=files / "keys",
        access_log=files / "access.log",
        in_flight=2,
        queue=4,
    )
    with running(options):
        yield options


def tls_url(options: ServeOptions, protocol: str) -> str:
    return options.grpc_url if protocol == "grpc" else f"127.0.0.1:{options.http_port}"


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tls_and_keys(guarded: ServeOptions, files: Path, protocol: str) -> None:
    url = tls_url(guarded, protocol)
    with TritonPipeline("ragged", url=url, protocol=protocol, ssl=files / "ca.pem", api_key=KEY) as pipe:  # type: ignore[arg-type]
        assert pipe("a warm film")[0]["label"]
    for key in (None, "not-a-key-of-this-test"):
        with (
            TritonPipeline("ragged", url=url, protocol=protocol, ssl=files / "ca.pem", api_key=key) as pipe,  # type: ignore[arg-type]
            pytest.raises(RequestError) as caught,
        ):
            pipe("a warm film")
        assert caught.value.status == "UNAUTHENTICATED"
    with (
        TritonPipeline("ragged", url=url, protocol=protocol, api_key=KEY, retries=0) as pipe,  # type: ignore[arg-type]
        pytest.raises(RequestError),
    ):
        pipe("not over TLS")


@pytest.mark.server
def test_a_bearer_token_is_a_key_and_health_needs_none(guarded: ServeOptions, files: Path, authority: trustme.CA) -> None:
    import ssl

    context = ssl.create_default_context()
    authority.configure_trust(context)

    async def statuses() -> list[int]:
        base = f"https://127.0.0.1:{guarded.http_port}/v2"
        found = []
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            for path, headers in (
                ("/health/ready", {}),
                ("/models/ragged", {}),
                ("/models/ragged", {"authorization": f"Bearer {KEY}"}),
                ("/repository/index", {}),
                ("/repository/index", {"x-api-key": KEY}),
            ):
                async with session.get(base + path, headers=headers) as answer:
                    found.append(answer.status)
        return found

    assert asyncio.run(statuses()) == [200, 401, 200, 401, 403]


@pytest.mark.server
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_queue_is_bounded(guarded: ServeOptions, files: Path, authority: trustme.CA, protocol: str) -> None:
    """Two are computed and four wait; the others are refused at once and told to come back."""
    outcomes = asyncio.run(_burst(guarded, files, authority, protocol))
    assert set(outcomes) == {"answered", "refused"}, outcomes
    assert outcomes["answered"] >= 6


async def _burst(options: ServeOptions, files: Path, authority: trustme.CA, protocol: str) -> Counter[str]:
    from tritonclient.grpc.aio import InferenceServerClient

    outcomes: Counter[str] = Counter()
    text = "word " * 2000
    if protocol == "grpc":
        async with InferenceServerClient(options.grpc_url, ssl=True, root_certificates=str(files / "ca.pem")) as client:

            async def send() -> None:
                try:
                    await client.infer("ragged", tensor(*[text.encode()] * 64), headers={"x-api-key": KEY})
                    outcomes["answered"] += 1
                except InferenceServerException as error:
                    assert (error.status(), error.message()) == (
                        "StatusCode.RESOURCE_EXHAUSTED",
                        "the server is busy: its queue is full",
                    )
                    outcomes["refused"] += 1

            await asyncio.gather(*(send() for _ in range(60)))
        return outcomes
    import ssl

    context = ssl.create_default_context()
    authority.configure_trust(context)
    url = f"https://127.0.0.1:{options.http_port}/v2/models/ragged/infer"
    connector = aiohttp.TCPConnector(ssl=context, limit=100)
    async with aiohttp.ClientSession(connector=connector, headers={"x-api-key": KEY}) as session:

        async def post() -> None:
            async with session.post(url, data=body(*[text] * 64)) as answer:
                if answer.status == 200:
                    outcomes["answered"] += 1
                    return
                assert (answer.status, await answer.json()) == (503, {"error": "the server is busy: its queue is full"})
                assert answer.headers["retry-after"] == "1"
                outcomes["refused"] += 1

        await asyncio.gather(*(post() for _ in range(60)))
    return outcomes


@pytest.mark.server
def test_the_access_log_holds_requests_and_no_texts(guarded: ServeOptions, files: Path) -> None:
    url = tls_url(guarded, "http")
    with TritonPipeline("ragged", url=url, protocol="http", ssl=files / "ca.pem", api_key=KEY) as pipe:
        pipe("a text that nobody else may read")
    assert (files / "access.log").stat().st_mode & 0o077 == 0
    stop_and_start = 11  # seconds: Envoy writes its log every ten
    text = wait_for_line(files / "access.log", '"/v2/models/ragged/infer"', stop_and_start)
    lines = [json.loads(line) for line in text.splitlines()]
    entry = next(line for line in lines if line["path"] == "/v2/models/ragged/infer" and line["status"] == 200)
    assert entry["method"] == "POST" and entry["ms"] >= 0 and entry["bytes_received"] > 0
    assert "nobody else may read" not in text and KEY not in text


def wait_for_line(path: Path, part: str, seconds: float) -> str:
    deadline = time.monotonic() + seconds + 5
    while True:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if part in text and text.endswith("\n"):
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.1)


# -- starting -----------------------------------------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.long
def test_unfinished_requests_do_not_keep_the_memory_from_others(small: Path) -> None:
    """One client sends 300 requests of 4 MiB but for their last byte, and waits."""
    options = serve_options(small)
    start_detached(options)
    url = f"{options.base_url}/v2/models/ragged/infer"
    size = 4 * 2**20 - 200
    head = b"POST /v2/models/ragged/infer HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size
    outcomes = []
    try:
        with contextlib.ExitStack() as held:
            for _ in range(300):
                client = held.enter_context(socket.create_connection(("127.0.0.1", options.http_port), timeout=30))
                with contextlib.suppress(ConnectionError):  # refused at once
                    client.sendall(head + b"x" * (size - 1))
            deadline = time.monotonic() + 20
            while [outcome[0] for outcome in outcomes[-20:]] != [200] * 20:
                assert time.monotonic() < deadline, outcomes[-1]
                outcomes.append(ask(url, body("fine")))
                time.sleep(0.01)
    finally:
        stop(options.http_port)
    for outcome in outcomes:
        assert outcome[0] == 200 or error_of(outcome) == (503, FULL)


@pytest.mark.server
@pytest.mark.parametrize(
    ("host", "front"),
    [("::1", "envoy"), ("::1", "none"), ("0.0.0.0", "envoy"), ("localhost", "none")],  # noqa: S104
)
@pytest.mark.long
def test_it_listens_where_the_user_says(small: Path, host: str, front: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    options = replace(serve_options(small), host=host, front=front)  # type: ignore[arg-type]
    start_detached(options)
    try:
        for protocol in ("grpc", "http"):
            url = options.grpc_url if protocol == "grpc" else options.base_url.removeprefix("http://")
            with TritonPipeline("ragged", url=url, protocol=protocol) as pipe:  # type: ignore[arg-type]
                assert pipe("a warm film")[0]["label"]
        assert "nv_inference" in ask(options.metrics_url)[1]
        said = log_file(options.http_port).read_text(encoding="utf-8")
    finally:
        stop(options.http_port)
    assert ("other machines can reach this server" in said) == (host == "0.0.0.0")  # noqa: S104
    assert ("clients reach Triton directly" in said) == (front == "none")


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no API key"),
        ("# only a remark\n", "holds no API key"),
        ("short\n", "16 or more"),
        ("with a space in the key\n", "no space"),
        ("schlüssel-schlüssel-schlüssel\n", "ASCII"),
    ],
)
def test_files_of_keys_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SetupError, match=message):
        read_api_keys(path)
    with pytest.raises(SetupError, match="cannot read the API keys"):
        read_api_keys(tmp_path / "nothing")


@pytest.mark.parametrize(("mode", "is_private"), [(0o600, True), (0o400, True), (0o440, True), (0o644, False), (0o660, False)])
def test_only_its_user_and_a_group_may_read_a_file_of_keys(tmp_path: Path, mode: int, is_private: bool) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n", encoding="utf-8")
    path.chmod(mode)
    if is_private:
        assert read_api_keys(path) == (KEY,)
    else:
        with pytest.raises(SetupError, match=f"is open to other users \\(mode {mode:04o}\\)") as caught:
            read_api_keys(path)
        assert caught.value.hint == f"close it with: chmod 600 {path}"


def test_a_file_of_keys_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    with pytest.raises(SetupError, match="cannot read the API keys"):
        ApiKeyFile(path)
    path.touch(mode=0o600)
    path.write_text(f"{KEY}\n", encoding="utf-8")
    keys = ApiKeyFile(path)
    assert not keys.refresh() and keys.keys == (KEY,)
    path.write_text(f"# a remark\n{KEY}\n", encoding="utf-8")
    assert not keys.refresh(), "the keys are the same"
    path.write_text(f"{KEY}{KEY}\n{KEY}\n", encoding="utf-8")
    assert keys.refresh() and keys.keys == (KEY + KEY, KEY)
    path.unlink()
    with pytest.raises(SetupError, match="cannot read the API keys"):
        keys.refresh()
    assert not keys.refresh() and keys.keys == (KEY + KEY, KEY), "it is told once"


def test_without_envoy_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    (tmp_path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    monkeypatch.setenv("TRITONIZE_TRITON_ENV", str(tmp_path))
    with pytest.raises(SetupError, match="no envoy on PATH") as caught:
        find_envoy()
    assert "--front none" in caught.value.hint


def test_ragged_models_get_two_batches_of_each_instance_in_flight(packaged: Path) -> None:
    assert needed_in_flight(packaged) == 128
