"""A server of a model that generates is stopped, and its process killed, while many texts are generated."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from export.bundle import export
from export.export_options import ExportOptions
from serving.background import start_detached, stop
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.family_checkpoints import write_family
from tests.helpers.library_generation import Generated
from tests.helpers.parity_clients import ask_all
from tests.helpers.parity_requests import ParityRequest
from tests.helpers.reviews import write_tsv
from tests.helpers.served_processes import STUB, processes, restarts, send, wait_ready
from tests.helpers.servers import running, serve_options

pytestmark = [pytest.mark.server, pytest.mark.long, pytest.mark.timeout(600)]
ENDLESS = {"do_sample": False, "num_beams": 1, "max_new_tokens": 230, "eos_token_id": []}
STREAMS = [
    ParityRequest(text=f"the sea {number}", options=ENDLESS, way=("grpc stream", "http generate_stream")[number % 2])
    for number in range(32)
]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeOptions]:
    folder = tmp_path_factory.mktemp("writer")
    rows = write_tsv(folder / "rows.tsv", [("the sea was the story of a sea", "-"), (" and the sea, the sea", "-")])
    checkpoint = write_family("llama", folder / "checkpoint")
    export(
        ExportOptions(
            artifacts=folder, name="writer", task="text-generation", checkpoint=str(checkpoint), test=str(rows),
            precision=("fp32",), device="cpu",
        )
    )  # fmt: skip
    package(PackageOptions(artifacts=folder, name="writer", repository=folder / "repository", precision="fp32", device="cpu"))
    with running(serve_options(folder / "repository")) as options:
        yield options


@pytest.fixture(scope="module")
def answers(writer: ServeOptions) -> list[Generated]:
    return ask_all(writer, "writer", STREAMS)


def stubs(options: ServeOptions) -> list[psutil.Process]:
    return [process for process in processes(options) if process.name().startswith(STUB[:15])]


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_process_ends_its_streams_with_an_error_and_comes_back(writer: ServeOptions, answers: list[Generated]) -> None:
    (victim,) = stubs(writer)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_all, writer, "writer", STREAMS * 4)
        time.sleep(0.5)
        assert not asking.done()
        send([victim], signal.SIGKILL)
        with pytest.raises(Exception) as failed:
            asking.result(60)
    assert not isinstance(failed.value, TimeoutError | asyncio.CancelledError)
    wait_ready(writer)
    deadline = time.monotonic() + 60
    while not restarts(writer):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    wait_ready(writer)
    assert ask_all(writer, "writer", STREAMS) == answers
    (another,) = stubs(writer)
    assert ended(victim) and another.pid != victim.pid


def test_a_stop_lets_streams_end(writer: ServeOptions, answers: list[Generated]) -> None:
    before = processes(writer)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_all, writer, "writer", STREAMS)
        time.sleep(0.2)
        assert not asking.done()
        stop(writer.http_port)
        assert asking.result(60) == answers
    assert all(map(ended, before))
    start_detached(writer)
