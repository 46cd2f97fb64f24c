"""A program that serves in the foreground, as tests start and end it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import IO

import psutil

from serving.options import ServeOptions
from serving.server import STUB
from serving.server_record import find_running
from tests.helpers.servers import watch_keeper


def serve(options: ServeOptions, stderr: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
    ports: dict[str, float] = {"--http-port": options.http_port, "--grpc-port": options.grpc_port}
    ports["--metrics-port"] = options.metrics_port
    if options.drain_seconds is not None:
        ports["--drain-seconds"] = options.drain_seconds
    flags = [part for flag, port in ports.items() for part in (flag, str(port))]
    command = [sys.executable, "-m", "export.cli", "serve", "--repository", str(options.repository), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    watch_keeper(process.pid)
    return process


def wait_ready(options: ServeOptions, process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        running = find_running(options.http_port)
        if running is not None and running.ready:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("not ready in time")


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def server_processes(keeper: int) -> list[psutil.Process]:
    return psutil.Process(keeper).children(recursive=True)


def stubs(keeper: int) -> list[psutil.Process]:
    return [process for process in server_processes(keeper) if name_of(process).startswith(STUB[:15])]


def name_of(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:  # it ended since it was listed
        return ""


def wait_ended(processes: list[psutil.Process], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while any(is_alive(process) for process in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # nobody may be there to reap it
    except psutil.NoSuchProcess:
        return False
