"""The release script with a running server: only the gates are made up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from export.cli import main
from serving.artifact import MANIFEST
from serving.layout import current_generation, generations
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from serving.server_record import find_running
from serving.signatures import verify
from tests.helpers.servers import running, serve_options
from tests.helpers.surroundings import free_port

pytestmark = [pytest.mark.server, pytest.mark.long]
SCRIPT = Path(__file__).parents[2] / "serving" / "deploy" / "release.sh"
WAYS = {"name": "one", "precision": "fp32", "device": "cpu", "batching": "off", "instances": 1}
TRITONIZE = """#!/bin/bash
# Runs tritonize. The verdict of benchmark is given.
[ "$1" != benchmark ] || exit "$GATES"
[ "$1" != package ] || set -- "$@" --precision fp32 --device cpu --batching off --instances 1 --layout "$LAYOUT"
exec "$PYTHON" -m export.cli "$@"
"""


@pytest.fixture
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair of keys, ``key.pem`` and ``key.pub``."""
    folder, key = tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    (folder / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return folder


def four_free_ports() -> int:
    """The first of four ports in a row that nobody has."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + 4):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            continue
        return first


@dataclass(frozen=True)
class Releasing:
    """A server that answers with the second generation of a package, and the variables of the script."""

    folder: Path
    options: ServeOptions
    variables: dict[str, str]
    first: str
    second: str

    def release(self, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.variables, "STAGING_PORT": str(four_free_ports()), **variables}
        return subprocess.run([SCRIPT], env=environment, cwd=self.folder, capture_output=True, text=True, check=False, timeout=300)

    def run(self, command: str) -> int:
        return main([command, "one", "--http-port", str(self.options.http_port)])

    @property
    def answering(self) -> str:
        found = find_running(self.options.http_port)
        assert found is not None
        served = found.generation_of(self.options.repository, "one")
        assert served is not None
        return served.name

    @property
    def current(self) -> str | None:
        return current_generation(self.options.repository, "one")


@pytest.fixture(params=["ensemble", "fused"])
def releasing(request: pytest.FixtureRequest, bundle: Path, keys: Path, tmp_path: Path) -> Iterator[Releasing]:
    bundle = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    assert main(["sign", str(bundle), "--key", str(keys / "key.pem")]) == 0
    options = serve_options(tmp_path / "models")
    chosen = PackageOptions(**WAYS, bundle=bundle, repository=options.repository, layout=request.param, force=True)
    first = package(chosen).manifest.generation
    (tmp_path / "tritonize").write_text(TRITONIZE)
    (tmp_path / "tritonize").chmod(0o755)
    variables = {"NAME": "one", "BUNDLE": str(bundle), "REPOSITORY": str(options.repository), "HTTP_PORT": str(options.http_port)}
    variables |= {"TRITONIZE": str(tmp_path / "tritonize"), "PYTHON": sys.executable, "LAYOUT": request.param}
    with running(options):
        second = package(chosen).manifest.generation
        made = Releasing(folder=tmp_path, options=options, variables=variables, first=first, second=second)
        assert made.run("promote") == 0
        yield made


def test_a_release_reaches_the_server_only_where_its_gates_hold(releasing: Releasing, keys: Path) -> None:
    repository = releasing.options.repository
    entries = sorted(releasing.folder.rglob("*"))
    failed = releasing.release(GATES="1")
    assert failed.returncode == 1 and "release failed at: gates" in failed.stderr, failed.stderr
    assert (releasing.answering, releasing.current) == (releasing.second, releasing.second)
    assert sorted(releasing.folder.rglob("*")) == entries, "neither the generation nor its copy is left"
    assert releasing.run("rollback") == 0 and releasing.answering == releasing.first, "what answered before is still there"
    assert main(["promote", "one", releasing.second, "--http-port", str(releasing.options.http_port)]) == 0
    done = releasing.release(GATES="0", KEY=str(keys / "key.pem"), VERIFY_KEY=str(keys / "key.pub"))
    assert done.returncode == 0, done.stderr
    third = generations(repository, "one")[-1]
    assert (releasing.answering, releasing.current) == (third, third) and third > releasing.second
    generation = repository / "one" / third
    verify(generation, (generation / MANIFEST).read_bytes(), keys / "key.pub")
    assert not list(releasing.folder.glob(".*")), "the copy is removed"
