"""Starting, breaking and stopping servers, each test with its own."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from serving.background import start_detached, stop
from serving.errors import ArtifactError, ServerError, SetupError
from serving.install import ENVIRONMENT_VARIABLE, PROJECT, find_install
from serving.options import PackageOptions, ServeOptions
from serving.probe import ask, find_probes
from serving.repository import package
from serving.server import check_ports
from serving.server_record import Running, find_running, started
from serving.triton_address import fetch
from tests.helpers.foreground import end, serve, server_processes, stubs, wait_ready
from tests.helpers.front_requests import ask as get
from tests.helpers.packages import generation_of, reseal_package, step
from tests.helpers.servers import detached, left_behind, running, serve_options

pytestmark = pytest.mark.server
READY = {"ready": True, "state": "ready", "not_answering": []}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("one") / "model_repository"
    package(PackageOptions(bundle=bundle, repository=folder, name="one", precision="fp32", device="cpu"))
    return folder


@pytest.fixture(autouse=True)
def _leaves_nothing(repository: Path) -> Iterator[None]:
    """Whatever happens in a test here: no process, no shared memory, no temporary folder stays."""
    yield
    assert not left_behind()
    assert not [process.pid for process in psutil.process_iter(["cmdline"]) if serves(process.info["cmdline"] or [], repository)]


def serves(command_line: list[str], repository: Path) -> bool:
    """Whether this is a tritonserver of the repository, or of this run and without the folder that it served."""
    flag = "--model-repository="
    folders = [Path(part.removeprefix(flag)) for part in command_line if part.startswith(flag)]
    mine = [folder for folder in folders if folder.is_relative_to(tempfile.gettempdir())]
    return any(not folder.exists() or (folder / "one").resolve().is_relative_to(repository) for folder in mine)


def test_serves_in_the_foreground_until_sigterm(repository: Path, tmp_path: Path) -> None:
    """Also beside a damaged ensemble and steps without an ensemble."""
    repository = with_a_damaged_one(repository, tmp_path / "models")
    options = serve_options(repository)
    started = time.monotonic()
    process = serve(options)
    try:
        wait_ready(options, process)
        assert time.monotonic() - started < 30
        answer = ask(options.base_url, find_probes(repository)[0], timeout=10)
        assert {output["name"] for output in answer["outputs"]} - {"DIGEST"} == {"LABEL", "SCORE", "SCORES", "TRUNCATED"}
        status, text, _ = get(f"{options.health_url}/readyz")
        assert (status, json.loads(text)) == (200, READY | {"ensembles": ["one"], "left_out": ["other"]})
        assert [get(f"{options.health_url}/{path}")[0] for path in ("livez", "startupz")] == [200, 200]
        listening = {
            connection.laddr.ip
            for child in server_processes(process.pid)
            for connection in child.net_connections()
            if connection.status == "LISTEN"
        }
        assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
        assert fetch(options.base_url, "/v2/models/one/ready", timeout=5)[0] == 200
        assert fetch(options.base_url, "/v2/models/other/ready", timeout=5)[0] >= 400
        found = subprocess.run(doctor(options), capture_output=True, text=True, check=False).stdout
        assert "FIX server: it serves one; left out: other" in found and "model.onnx was altered" in found, found
        assert "ok  ports: used by your server" in found, found
    finally:
        code, out, err = end(process)
    assert code == 0
    assert "ready: one   left out: other" in out
    assert "other is left out: " in err and "_model/1/model.onnx was altered" in err
    assert "_preprocess belongs to a generation of gone that is missing (package it again, or remove it with" in err
    assert "Traceback" not in err
    curl = next(line for line in out.splitlines() if line.strip().startswith("curl"))
    assert f"127.0.0.1:{options.http_port}/v2/models/one/infer" in curl


def doctor(options: ServeOptions) -> list[str]:
    ports = [f"--{name}-port={getattr(options, f'{name}_port')}" for name in ("http", "grpc", "metrics")]
    return [sys.executable, "-m", "export.cli", "doctor", *ports]


def with_a_damaged_one(repository: Path, copy: Path) -> Path:
    """A copy with a second ensemble whose model was altered, and a step of a third."""
    subprocess.run(["cp", "-a", repository, copy], check=True)
    generation = generation_of(copy, "one")
    for entry in sorted(copy.glob("one*")):
        shutil.copytree(entry, copy / entry.name.replace("one", "other", 1))
    folder = copy / "other" / generation
    files = json.loads((folder / "manifest.json").read_bytes())["files"]
    for config in [copy / "other" / "config.pbtxt", folder / "config.pbtxt", *copy.glob("other.*/config.pbtxt")]:
        config.write_text(re.sub(r'"one(?=["._])', '"other', config.read_text()))
    names = {re.sub(r"^one", "other", file): digest for file, digest in files.items()}
    content = json.loads((folder / "manifest.json").read_bytes()) | {"name": "other", "files": names}
    (folder / "manifest.json").write_text(json.dumps(content))
    reseal_package(copy, "other")
    (step(copy, "other", "model") / "1" / "model.onnx").write_bytes(b"altered")
    shutil.copytree(step(copy, "one", "preprocess"), copy / f"gone.{generation}_preprocess")
    return copy


def test_instances_of_a_model_share_their_weights(repository: Path, bundle: Path) -> None:
    package(PackageOptions(bundle=bundle, repository=repository, name="one", precision="fp32", device="cpu", instances=3))
    options = serve_options(repository)
    process = serve(options)
    try:
        wait_ready(options, process)
        mapped = [
            {(maps.path, maps.rss > 0) for maps in stub.memory_maps() if Path(maps.path).name == "weights"}
            for stub in stubs(process.pid)
            if any(re.search(r"one\.\d+_model", part) for part in stub.cmdline())
        ]
    finally:
        end(process)
        package(PackageOptions(bundle=bundle, repository=repository, name="one", precision="fp32", device="cpu"))
    assert len(mapped) == 3
    assert mapped[0] and mapped == [mapped[0]] * 3


def test_requests_in_flight_are_answered_before_it_stops(repository: Path) -> None:
    """Those that it has accepted are answered. New ones are refused at once, also where the server says whether it is ready."""
    options = replace(serve_options(repository), queue=1000)
    refusal, most = "starting, restarting or stopping", 500
    outcomes: dict[int, str] = {}
    sent = itertools.count()

    def received(number: int, result: grpcclient.InferResult | None, error: InferenceServerException | None) -> None:
        outcomes[number] = "answered" if error is None else "refused" if refusal in str(error) else str(error)

    rows = 8  # so that those in flight take seconds, and the test sees the server while it finishes them
    tensor = grpcclient.InferInput("TEXT", [rows, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["word " * 90]] * rows, dtype=np.object_))
    with running(options), grpcclient.InferenceServerClient(options.grpc_url) as client:
        stopping, in_flight = threading.Thread(target=stop, args=[options.http_port]), 0
        while stopping.ident is None or fetch(options.base_url, "/v2/health/ready", timeout=5)[0] == 200:
            at_once = most if stopping.ident is None else 50  # it looks again before those in flight are answered
            for number in itertools.islice(sent, min(at_once, most - in_flight)):
                client.async_infer("one", [tensor], partial(received, number))
            in_flight = number + 1 - len(outcomes)
            if outcomes and stopping.ident is None:
                stopping.start()
        assert fetch(options.base_url, "/v2/models/one/ready", timeout=5)[0] == 503
        with pytest.raises(InferenceServerException, match=refusal) as caught:
            client.infer("one", [tensor])
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert len(outcomes) <= number, "some are in flight while new ones are refused"
        stopping.join(60)
    by_number = [outcomes[one] for one in range(number + 1)]
    accepted = by_number.count("answered")
    assert by_number == ["answered"] * accepted + ["refused"] * (number + 1 - accepted), "from one moment on all are refused"
    assert accepted > 1


def test_detached_server_is_found_and_stopped(repository: Path) -> None:
    options = serve_options(repository)
    log = detached(options)
    try:
        running = find_running(options.http_port)
        assert running is not None and running.ready and running.pid != os.getpid()
        with log.open("a") as file:
            file.write("written by the first\n")
        with pytest.raises(ServerError, match="you already have a server at HTTP port"):
            start_detached(options)
        assert log.read_text().endswith("written by the first\n")
        line = find_probes(repository)[0].curl(options.base_url)  # the first one still serves, as the printed line asks it
        answer = json.loads(subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout)
        assert {output["name"] for output in answer["outputs"]} - {"DIGEST"} == {"LABEL", "SCORE", "SCORES", "TRUNCATED"}
    finally:
        stop(options.http_port)
    assert find_running(options.http_port) is None
    before = log.read_text()
    lines = before.replace("written by the first\n", "").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z \S", line) for line in lines), lines
    events = [line.split(" ", 1)[1] for line in lines if "tritonserver: " not in line and "envoy: " not in line]
    assert [event.split(":")[0].split(" after")[0] for event in events] == ["starting", "ready", "stopping", "stopped"]
    assert f"one of {repository}, ports {options.http_port} (HTTP)" in events[0] and events[1].endswith(" s: one")
    with socket.create_server(("127.0.0.1", options.http_port)), pytest.raises(ServerError, match="cannot listen on"):
        start_detached(options)
    assert re.fullmatch(r"\S+Z error: cannot listen on .*\n", log.read_text().removeprefix(before)), "it goes on"
    with pytest.raises(ServerError, match="you have no server"):
        stop(options.http_port)


@pytest.mark.long
def test_killing_the_keeper_takes_the_server_along(repository: Path) -> None:
    options = serve_options(repository)
    process = serve(options)
    wait_ready(options, process)
    family = server_processes(process.pid)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=45)
    assert not alive
    detached(options)  # the ports are free again, the note of the dead keeper is not in the way, and what it left is swept up
    stop(options.http_port)


def test_each_protocol_needs_a_port_of_its_own(repository: Path) -> None:
    options = serve_options(repository)
    with pytest.raises(ServerError, match="need a port each"):
        check_ports(replace(options, metrics_port=options.http_port))


def test_occupied_port(repository: Path) -> None:
    options = serve_options(repository)
    with socket.create_server(("127.0.0.1", options.metrics_port)):
        code, out, err = end_after_exit(serve(options))
    assert code == 1
    assert err.startswith("error: cannot listen on") and "--metrics-port" in err and str(options.metrics_port) in err
    assert "Traceback" not in err and not out


def end_after_exit(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_model_that_cannot_load_ends_with_the_reason(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model_repository"
    subprocess.run(["cp", "-a", repository, copy], check=True)
    (step(copy, "one", "model") / "1" / "model.onnx").write_bytes(b"no graph")
    reseal_package(copy, "one")
    code, _, err = end_after_exit(serve(serve_options(copy)))
    assert code == 1
    assert re.search(r"before it was ready: failed to load 'one\.\d+_model'", err.splitlines()[-1])


def test_other_peoples_models_are_let_be(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model_repository"
    subprocess.run(["cp", "-a", repository, copy], check=True)
    (copy / "theirs").mkdir()
    (copy / "theirs" / "manifest.json").write_text('{"kind": "something else"}')
    assert [probe.ensemble for probe in find_probes(copy)] == ["one"]


def test_an_empty_repository(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no packaged ensemble"):
        find_probes(tmp_path)


def test_numpy_2_is_refused(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "env"
    packages = fake / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    wheel = PROJECT / ".triton" / "lib" / "python3.11" / "site-packages" / "pytriton"
    if not wheel.is_dir():
        pytest.skip("the embedded server is not in .triton under Python 3.11")
    (packages / "pytriton").symlink_to(wheel)
    (packages / "numpy-2.1.0.dist-info").mkdir()
    (packages / "numpy-2.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.1.0\n")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(fake))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(SetupError, match=r"numpy 2\.1\.0.*zeros"):
        start_and_fail(repository)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match="no virtual environment"):
        find_install()


def start_and_fail(repository: Path) -> None:
    from serving.server import TritonServer

    with TritonServer(serve_options(repository), log=print):
        raise AssertionError("it started")


def test_a_clock_that_is_set_makes_no_stranger_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a virtual machine was suspended: the time of its start moves along with the clock."""
    running = Running(pid=os.getpid(), started=started(psutil.Process()), http_port=1, repository="x", ready=True)
    booted, begun = psutil.boot_time(), psutil.Process().create_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 28)
    assert psutil.Process().create_time() == pytest.approx(begun + 28)
    assert running.is_alive()
    assert not replace(running, started=running.started + 5).is_alive(), "another process of that id"
