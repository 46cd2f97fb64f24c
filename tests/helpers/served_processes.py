"""The processes of a running server, by what they do, and what its supervisor has logged."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

from serving.options import ServeOptions
from serving.server_record import find_running, state_folder

STUB = "triton_python_backend_stub"


def processes(options: ServeOptions, role: str = "tree") -> list[psutil.Process]:
    """Return the processes of a role below the supervisor.

    Args:
        options: The options of the server.
        role: ``server`` (tritonserver), ``front`` (Envoy), ``tree`` (all), or the end of a step's name: ``preprocess``, ``model``,
            ``postprocess``.
    """
    running = find_running(options.http_port)
    assert running is not None, "the supervisor has ended"
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(running.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if role == "tree" or role in _roles(process):
                    found.append(process)
    return found


def _roles(process: psutil.Process) -> list[str]:
    name = process.name()
    if name == "tritonserver":
        return ["server"]
    if name == "envoy":
        return ["front"]
    if name.startswith(STUB[:15]):
        return [
            step for step in ("preprocess", "model", "postprocess") if any(f"_{step}" in part for part in process.cmdline()[1:])
        ]
    return []


def send(victims: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to all of them. Those that have ended meanwhile are left out."""
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, number)


def identities(options: ServeOptions) -> set[tuple[int, float]]:
    """Return id and start of each process of the server: they stay the same as long as nothing is restarted."""
    return {(process.pid, process.create_time()) for process in processes(options)}


def log_path(options: ServeOptions) -> Path:
    """Return the log of a server in the background."""
    return state_folder() / f"{options.http_port}.log"


def restarts(options: ServeOptions) -> list[str]:
    """Return the lines of the log that tell of a restart, of the server or of the front."""
    lines = log_path(options).read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if "; restarting" in line or "starting it again" in line]


def resident_bytes(options: ServeOptions) -> int:
    """Return the resident memory of all processes of the server but the supervisor."""
    total = 0
    for process in processes(options):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def wait_ready(options: ServeOptions, seconds: float = 60) -> None:
    """Wait until the supervisor says that every ensemble answers."""
    deadline = time.monotonic() + seconds
    while True:
        running = find_running(options.http_port)
        if running is not None and running.ready:
            return
        assert time.monotonic() < deadline, log_path(options).read_text()[-3000:]
        time.sleep(0.05)
