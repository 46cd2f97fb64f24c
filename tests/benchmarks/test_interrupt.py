"""A benchmark costs nobody else anything: however it ends, no process, no shared memory and no temporary file of it stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from serving.isolation import SHARED_MEMORY, TRACE
from tests.helpers import servers

pytestmark = [pytest.mark.server, pytest.mark.long]
NAME = "ragged"


def abandoned() -> set[Path]:
    """Shared memory that belongs to no server and that no process uses: other programs and tests use theirs meanwhile."""
    regions = {region for region in SHARED_MEMORY.iterdir() if not region.name.startswith(TRACE)}
    used = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            used |= {Path(entry.path) for entry in process.memory_maps() if entry.path.startswith(str(SHARED_MEMORY))}
            used |= {Path(file.path) for file in process.open_files() if file.path.startswith(str(SHARED_MEMORY))}
    return {region for region in regions - used if region.exists()}


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_"))


@pytest.mark.parametrize(
    ("after", "number"),
    [("loading", signal.SIGINT), ("round 1", signal.SIGTERM)],
)
def test_nothing_stays_of_an_interrupted_benchmark(
    server: servers.Server, tmp_path: Path, after: str, number: signal.Signals
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = server.benchmark(
        NAME, precision="fp32", length="none", rows=40, duration=2, rounds=2, concurrency=4, output=tmp_path / "report"
    )
    before = abandoned()
    with subprocess.Popen(
        [*command, "--no-exported"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith(after):
                break
        deadline = time.monotonic() + 30
        while not (family := psutil.Process(process.pid).children(recursive=True)) and time.monotonic() < deadline:
            time.sleep(0.01)
        # Ctrl-C goes to everybody in the terminal's group, an orchestrator's signal to the one process it started
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        rest = process.stderr.read()
    assert process.returncode == 1, said + rest
    assert rest.splitlines()[-1].startswith("interrupted: no half-written artifact is left")
    assert family, "it had started something"
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert left_in(temporary) == []
    assert abandoned() <= before
    assert not list(SHARED_MEMORY.glob(f"{TRACE}{process.pid}_*"))
    assert not (tmp_path / "report").exists()
