"""Processes of this machine: who listens on a port, and how much memory a process tree uses."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil

MIB = 2**20


def listening_process(port: int) -> psutil.Process | None:
    """Find the process that listens on a TCP port of this machine; None if it is not visible from here."""
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None:
            return psutil.Process(connection.pid)
    return None


def process_tree(root: psutil.Process) -> list[psutil.Process]:
    """List a process and all its descendants."""
    return [root, *root.children(recursive=True)]


def cpu_seconds(root: psutil.Process) -> float:
    """Return the processor time that a process and all its descendants have used so far, seconds."""
    return sum(own_seconds(process) for process in process_tree(root))


def own_seconds(process: psutil.Process) -> float:
    """Return the processor time of a process and of its descendants that have ended, seconds."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:  # ended between listing and reading: its parent counts it from now on
        return 0.0


class MemoryMeter:
    """Measure the peak memory of a process tree while the block runs. It can be entered again; the peak is over all blocks.

    Attributes:
        peak_rss_mib: Peak of the sum of resident sets, MiB. Pages that processes share count once for each process.
        pss_mib: Memory with shared pages divided among the processes, MiB, read once at the end of the last block.
    """

    INTERVAL = 0.25  # seconds

    def __init__(self, root: psutil.Process) -> None:
        """Prepare to measure ``root`` and its descendants."""
        self._root = root
        self._done = threading.Event()
        self.peak_rss_mib = 0.0
        self.pss_mib = 0.0

    def __enter__(self) -> Self:
        """Start to measure."""
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop measuring."""
        self._done.set()
        self._thread.join()
        if error is None:
            self.pss_mib = sum(_memory(process, "pss") for process in process_tree(self._root)) / MIB

    def _watch(self) -> None:
        while not self._done.wait(self.INTERVAL):
            try:
                tree = process_tree(self._root)
            except psutil.NoSuchProcess:  # the server has ended: whoever talks to it reports that
                return
            self.peak_rss_mib = max(self.peak_rss_mib, sum(_memory(process, "rss") for process in tree) / MIB)


def _memory(process: psutil.Process, field: str) -> int:
    try:
        memory = process.memory_full_info() if field == "pss" else process.memory_info()
    except psutil.NoSuchProcess:  # ended between listing and reading
        return 0
    value: int = getattr(memory, field)
    return value
