"""A server that is asked to stop: who watches its health learns it first, and whoever is in a hurry asks twice."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from serving.health_options import WATCHED_DRAIN_SECONDS
from serving.options import PackageOptions
from serving.probe import Probe, find_probes
from serving.repository import package
from serving.triton_address import fetch
from tests.helpers.foreground import serve, wait_ready
from tests.helpers.front_requests import ask as get
from tests.helpers.servers import serve_options

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("one") / "model_repository"
    package(PackageOptions(bundle=bundle, repository=folder, name="one", precision="fp32", device="cpu"))
    return folder


@pytest.mark.long
def test_it_says_that_it_stops_before_it_does(repository: Path) -> None:
    """Somebody asks for its health: so it serves on for four seconds, and asks the clients to connect elsewhere."""
    options = serve_options(repository)
    process = serve(options)
    wait_ready(options, process)
    probe, url = find_probes(repository)[0], options.base_url.removeprefix("http://")
    assert get(f"{options.health_url}/readyz")[0] == 200
    kept = http.client.HTTPConnection(url, timeout=10)
    asked, refused = 0, 0.0
    with contextlib.closing(kept), grpcclient.InferenceServerClient(options.grpc_url) as client:
        for _ in range(2):
            assert kept_open(kept, probe), "as long as it does not stop"
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        while get(f"{options.health_url}/readyz")[0] == 200:
            assert time.monotonic() - begun < 1
        while time.monotonic() - begun < WATCHED_DRAIN_SECONDS - 1:
            status, text, _ = get(f"{options.health_url}/readyz")
            assert (status, json.loads(text)["state"]) == (503, "stopping")
            assert get(f"{options.health_url}/livez")[0] == 200
            assert not kept_open(kept, probe)
            client.infer("one", [text_tensor("still here")])
            asked += 1
        while True:
            with contextlib.suppress(ConnectionError):
                if fetch(options.base_url, probe.path, json.dumps(probe.body).encode(), timeout=5)[0] == 200:
                    continue
            refused = time.monotonic() - begun
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and asked > 3
    assert WATCHED_DRAIN_SECONDS - 0.5 < refused < WATCHED_DRAIN_SECONDS + 2
    assert "stopping in 4 s: /readyz says 503, requests are still answered" in err


def kept_open(connection: http.client.HTTPConnection, probe: Probe) -> bool:
    """Ask, and return whether the connection stays open."""
    connection.request("POST", probe.path, json.dumps(probe.body))
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 200
    return answer.getheader("connection") != "close"


def text_tensor(text: str) -> grpcclient.InferInput:
    tensor = grpcclient.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
    return tensor


@pytest.mark.long
def test_a_second_signal_ends_the_time_in_which_it_serves_on(repository: Path) -> None:
    options = replace(serve_options(repository), drain_seconds=60.0)
    process = serve(options)
    wait_ready(options, process)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert fetch(options.base_url, "/v2/health/ready", timeout=5)[0] == 200
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopping in 60 s" in err
    assert time.monotonic() - begun < 30
