"""Release commands and a Triton that ``tritonize serve`` has not started: with TLS and keys, or not in explicit mode."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from export.cli import main
from serving.access import API_KEY_VARIABLE, ClientAccess
from serving.errors import ServerError
from serving.layout import current_generation
from serving.model_control import ModelControl
from serving.options import PackageOptions, ServeOptions
from serving.probe import Probe
from serving.release_address import one_address
from serving.repository import package
from serving.server import CLOSED
from tests.helpers.packages import generation_of
from tests.helpers.plain_triton import copy_with_writer, plain_triton
from tests.helpers.surroundings import free_port
from tests.serving.front.test_access import write_certificate, write_key

KEY, WRONG_KEY = "the-key-of-this-test-0123456789", "not-the-key-of-this-test-01234"
CERTIFIED = ("--tls-ca", "--tls-certificate", "--tls-key")


@pytest.fixture(scope="module")
def two_generations(pristine: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two generations of ``one``, the older of which is the current one, and ``writer``, which streams."""
    models = tmp_path_factory.mktemp("generations") / "models"
    copy_with_writer(pristine, models)
    add_generation(bundle, models)
    return models


def add_generation(bundle: Path, models: Path) -> str:
    ways = PackageOptions(
        bundle=bundle, repository=models, name="one", precision="fp32", device="cpu", force=True, keep=9, current=False
    )
    return package(ways).manifest.generation


@dataclass(frozen=True)
class Other:
    """A Triton of another program, its repository, and the options for it."""

    options: ServeOptions
    models: Path
    access: dict[str, str]

    def run(self, *arguments: str, **changes: str | None) -> int:
        """Run a command with the options, some of which are others or are left out: ``tls_ca=None``."""
        access = self.access | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        given = [word for pair in access.items() for word in pair if pair[1] is not None]
        return main([*arguments, "--url", self.options.grpc_url, "--repository", str(self.models), *given])

    def states(self, capsys: pytest.CaptureFixture[str]) -> list[str]:
        """The states of the generations, the newest one first."""
        capsys.readouterr()
        assert self.run("status", "--json") == 0
        return [entry["state"] for entry in json.loads(capsys.readouterr().out) if entry["name"] == "one"]


@pytest.fixture(scope="module")
def secured(two_generations: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Other]:
    """A Triton in explicit mode that wants certificates of clients, and a key of those that change models or ask them."""
    folder, authority, of_clients = tmp_path_factory.mktemp("secrets"), trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    of_clients.cert_pem.write_to_path(folder / "client-ca.pem")
    write_certificate(authority, folder, "server")
    write_certificate(of_clients, folder, "client")
    write_key(folder / "keys", KEY)
    write_key(folder / "wrong-keys", WRONG_KEY)
    models = tmp_path_factory.mktemp("secured") / "models"
    subprocess.run(["cp", "-a", two_generations, models], check=True)
    flags = [
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in ("one", "writer")),
        "--grpc-use-ssl-mutual=1",
        f"--grpc-server-cert={folder / 'server.pem'}",
        f"--grpc-server-key={folder / 'server-key.pem'}",
        f"--grpc-root-cert={folder / 'client-ca.pem'}",
        f"--grpc-restricted-protocol=model-repository,inference:x-api-key={KEY}",
    ]
    files = zip(CERTIFIED, ("ca.pem", "client.pem", "client-key.pem"), strict=True)
    access = {flag: str(folder / file) for flag, file in files} | {"--api-key-file": str(folder / "keys")}
    with plain_triton(models, *flags) as options:
        yield Other(options, models, access)


@pytest.mark.server
@pytest.mark.long
@pytest.mark.parametrize(
    ("missing", "said", "hint"),
    [
        (
            dict.fromkeys(("tls_ca", "tls_certificate", "tls_key")),
            "closes every connection at once (the server may want TLS, ",
            "--tls-ca",
        ),
        (dict.fromkeys(("tls_certificate", "tls_key")), "closes every connection at once (", "or a certificate of the client: "),
        ({"tls_ca": "client-ca.pem"}, "no TLS connection to 127.0.0.1:", "must trust each other's certificates: --tls-ca"),
        ({"api_key_file": None}, "wants a valid key in the header x-api-key (", "--api-key-file"),
        ({"api_key_file": "wrong-keys"}, "wants a valid key in the header x-api-key (", "--api-key-file"),
    ],
    ids=["no TLS", "no certificate", "another CA", "no key", "wrong key"],
)
@pytest.mark.parametrize("command", [["status"], ["promote", "one"], ["rollback", "one"], ["load", "one"], ["unload", "one"]])
def test_what_is_missing_is_told_in_one_line(
    secured: Other,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    missing: dict[str, str | None],
    said: str,
    hint: str,
) -> None:
    folder = Path(secured.access["--api-key-file"]).parent
    assert secured.run(*command, **{name: value and str(folder / value) for name, value in missing.items()}) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line and hint in line


@pytest.mark.server
@pytest.mark.long
def test_a_release_with_certificates_and_a_key(
    secured: Other, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generation_of(secured.models, "one")
    assert secured.states(capsys) == ["stored", "answers"]
    assert secured.run("promote", "one") == 0
    assert secured.states(capsys) == ["answers", "stored"]
    second = current_generation(secured.models, "one")
    assert secured.run("rollback", "one") == 0
    assert secured.states(capsys) == ["stored", "answers"] and generation_of(secured.models, "one") == first
    monkeypatch.setenv(API_KEY_VARIABLE, KEY)
    assert secured.run("load", "one", str(second), api_key_file=None) == 0, "the key may be in the environment"
    assert secured.states(capsys) == ["loaded", "answers"]
    assert secured.run("unload", "one", str(second)) == 0
    assert secured.states(capsys) == ["stored", "answers"]


@pytest.mark.server
@pytest.mark.long
def test_a_model_that_streams_is_asked_with_the_key(secured: Other) -> None:
    files = {name: secured.access[flag] for name, flag in zip(("ca", "certificate", "key"), CERTIFIED, strict=True)}
    probe = Probe(ensemble="writer", body={"text_input": "a warm film"}, models=("writer",), endpoint="generate")
    with ModelControl(secured.options.grpc_url, ClientAccess(**files, api_key=KEY)) as control:
        control.check(probe, seconds=20)
    for _ in range(3):  # the refusal comes before or after the request
        wrong = ClientAccess(**files, api_key=WRONG_KEY)
        with ModelControl(secured.options.grpc_url, wrong) as control, pytest.raises(ServerError, match="wants a valid key"):
            control.check(probe, seconds=20)


@pytest.fixture(scope="module")
def not_explicit(two_generations: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Other]:
    """A Triton in its default mode, which has loaded all that its repository held then."""
    models = tmp_path_factory.mktemp("default") / "models"
    subprocess.run(["cp", "-a", two_generations, models], check=True)
    with plain_triton(models) as options:
        yield Other(options, models, {})


@pytest.mark.server
@pytest.mark.long
@pytest.mark.parametrize("is_loaded", [True, False], ids=["its steps are loaded", "it is new"])
@pytest.mark.parametrize("command", ["promote", "load", "unload"])
def test_a_triton_that_is_not_in_explicit_mode(
    not_explicit: Other, bundle: Path, capsys: pytest.CaptureFixture[str], command: str, is_loaded: bool
) -> None:
    first = generation_of(not_explicit.models, "one")
    generation = () if is_loaded or command == "unload" else (add_generation(bundle, not_explicit.models),)
    capsys.readouterr()
    assert not_explicit.run(command, "one", *generation) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{not_explicit.options.grpc_url} is a Triton that is not in explicit mode" in line
    assert "(start it with --model-control-mode=explicit, and with --load-model=NAME for each model)" in line
    assert "no server answers" not in line and "undone" not in line
    if command == "promote":
        assert f"; one answers with {first} as before (" in line
    assert generation_of(not_explicit.models, "one") == first


@pytest.mark.server
@pytest.mark.long
def test_a_server_without_a_front_is_closed(two_generations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``tritonize serve --front none`` starts it."""
    with plain_triton(two_generations, f"--grpc-restricted-protocol=model-repository:{CLOSED}") as options:
        for command in (["status"], ["promote", "one"]):
            assert main([*command, "--url", options.grpc_url, "--repository", str(two_generations)]) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert f"this part of the API of {options.grpc_url} is closed (if tritonize has started " in line


# --- without a server -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["status"], ["promote", "one"], ["rollback", "one"], ["load", "one"], ["unload", "one"]])
@pytest.mark.parametrize("flag", ["--tls", "--tls-ca", "--api-key-file"])
def test_access_without_an_address_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], flag: str
) -> None:
    write_key(tmp_path / "file", KEY)
    assert main([*command, flag, *([] if flag == "--tls" else [str(tmp_path / "file")])]) == 2
    error = capsys.readouterr().err
    assert f"{flag} has no effect without --url: a server of tritonize serve is asked through a socket that" in error


def test_files_that_cannot_be_used_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_key(tmp_path / "file", KEY)
    assert main(["status", "--url", "127.0.0.1:9", "--tls-ca", str(tmp_path / "file")]) == 2
    assert "ca must be a PEM file of certificates" in capsys.readouterr().err


def test_hints_repeat_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    write_key(tmp_path / "keys", KEY)
    monkeypatch.setattr(ModelControl, "loaded", lambda _: {})
    address, files = f"127.0.0.1:{free_port()}", ["--api-key-file", str(tmp_path / "keys"), "--tls-ca", str(tmp_path / "ca.pem")]
    assert main(["unload", "one", "--url", address, *files]) == 1
    assert f"tritonize status --url {address} {' '.join(files)})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "addresses", "reached"),
    [
        ("there:8001", ["10.0.0.1"], "there:8001"),
        ("dns:///there:8001", ["10.0.0.1"], "there:8001"),
        ("[::1]:8001", ["::1"], "[::1]:8001"),
        ("there:8001", ["10.0.0.1", "fd00::1"], "there:8001"),
        ("there:8001", ["10.0.0.1", "10.0.0.1"], "there:8001"),
    ],
)
def test_the_address_of_one_server(monkeypatch: pytest.MonkeyPatch, url: str, addresses: list[str], reached: str) -> None:
    resolve_to(monkeypatch, addresses)
    assert one_address(url) == reached


@pytest.mark.parametrize("url", ["there:8001", "dns:///there:8001"])
def test_a_name_of_several_servers_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    resolve_to(monkeypatch, ["10.0.0.2", "10.0.0.1"])
    assert main(["promote", "one", "--url", url]) == 1
    error = capsys.readouterr().err
    assert "there has several addresses (10.0.0.1, 10.0.0.2), and a release is about one server (give the gRPC address" in error


@pytest.mark.parametrize(
    "url",
    [
        *("there", "there:0", "there:99999", "http://there:1", "dns://10.0.0.9/there:8001", "", "unix:/there"),
        *("a..b:8001", f"{'a' * 64}.b:8001", "me@127.0.0.1:8001", "127.0.0.1:8001?x=1", "127.0.0.1:8001#x"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ServerError, match="is not HOST:PORT"):
        one_address(url)


def test_a_name_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ServerError, match=r"--url no\.such\.host:8001: Name or service not known"):
        one_address("no.such.host:8001")


def resolve_to(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    """Let every name have these addresses."""
    found = [
        (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 8001)) for address in addresses
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
