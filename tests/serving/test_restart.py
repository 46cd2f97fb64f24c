"""``TritonPipeline`` with its defaults, while the server or one of its processes dies under load."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.client import TritonPipeline
from serving.options import PackageOptions, WireProtocol
from serving.repository import package
from serving.supervisor import find_running, start_detached, stop
from tests.helpers.servers import Server, serve_options

pytestmark = pytest.mark.server
CLIENTS = 4


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    folder = tmp_path_factory.mktemp("restarted") / "model_repository"
    package(PackageOptions(bundle=bundle, repository=folder, name="one", precision="fp32", device="cpu"))
    return folder


@pytest.fixture
def served(repository: Path, bundle: Path) -> Iterator[Server]:
    options = serve_options(repository)
    start_detached(options)
    yield Server(options=options, bundles={"one": bundle}, checkpoints={})
    stop(options.http_port)


def processes(server: Server, name: str) -> list[psutil.Process]:
    """The processes of the server with such a name. Their parent is the one that keeps it running."""
    running = find_running(server.options.http_port)
    assert running is not None
    found = []
    for process in psutil.Process(running.pid).children(recursive=True):
        try:
            if process.name().startswith(name):
                found.append(process)
        except psutil.NoSuchProcess:  # it ended since it was listed
            pass
    return found


class Load:
    """Threads that ask without a pause, each text with one right answer."""

    def __init__(self, server: Server, protocol: WireProtocol) -> None:
        self.pipe = TritonPipeline("one", url=server.url(protocol), protocol=protocol)
        texts = [f"the film was {word} ." for word in ("superb", "awful", "long", "dull", "fine")]
        self.expected = dict(zip(texts, self.pipe(texts), strict=True))
        self.answered, self.errors, self.wrong = [time.monotonic()], list[BaseException](), list[tuple[Any, Any]]()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self.pipe.close()

    def _ask(self) -> None:
        while not self._ended.is_set():
            for text, expected in self.expected.items():
                try:
                    answer = self.pipe(text)[0]
                except Exception as error:  # the test looks at all of them
                    self.errors.append(error)
                    continue
                self.answered.append(time.monotonic())
                if answer["label"] != expected["label"] or abs(answer["score"] - expected["score"]) > 1e-4:
                    self.wrong.append((answer, expected))

    def wait_for_answers(self, after: float, count: int = 50, seconds: float = 90) -> None:
        """Wait for answers that came ``after`` a moment."""
        deadline = time.monotonic() + seconds
        while sum(moment > after for moment in self.answered[-count:]) < count:
            assert time.monotonic() < deadline, (self.errors[:3], len(self.answered))
            time.sleep(0.1)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ["tritonserver", "triton_python"])
def test_no_request_is_lost_when_a_process_is_killed(served: Server, protocol: WireProtocol, name: str) -> None:
    with Load(served, protocol) as load:
        load.wait_for_answers(time.monotonic())
        victim = processes(served, name)[0]
        os.kill(victim.pid, signal.SIGKILL)
        while victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        time.sleep(1)
        load.wait_for_answers(time.monotonic())
    gaps = [later - earlier for earlier, later in zip(sorted(load.answered), sorted(load.answered)[1:], strict=False)]
    sys.stdout.write(f"\n{name} killed, {protocol}: longest gap {max(gaps):.1f} s, {len(load.answered)} answers\n")
    assert not load.errors, load.errors[:3]
    assert not load.wrong
    assert max(gaps) < 60
