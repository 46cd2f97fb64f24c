"""What a figure was measured on: the machine, the versions, the memory of processes."""

from __future__ import annotations

import platform
import shutil
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from serving.artifact import versions
from serving.machine import cores, cpu_model, nvidia_smi

MIB = 2**20


def environment() -> dict[str, Any]:
    """CPU, cores, memory, GPUs and their driver, versions, commit and how busy others keep the machine (looked at for a second),
    JSON-ready. A driver is none of the machine's: another one does not make it another machine."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_mib": round(psutil.virtual_memory().total / MIB),
        "gpus": nvidia_smi("--query-gpu=name,memory.total"),
        "driver": next(iter(nvidia_smi("--query-gpu=driver_version")), None),
        "system": platform.platform(),
        "busy_percent": psutil.cpu_percent(interval=1),
        "versions": versions(),
        "commit": _commit(),
    }


def stolen_percent(before: Any, after: Any) -> float | None:
    """Share of the processor time between two readings of ``psutil.cpu_times()`` that the host gave to others than this machine.

    None where the system does not count it.
    """
    if not hasattr(after, "steal"):
        return None
    counted = [name for name in after._fields if not name.startswith("guest")]  # guests' time is in the user's already
    spent = {name: getattr(after, name) - getattr(before, name) for name in counted}
    passed = sum(spent.values())
    return 100 * spent["steal"] / passed if passed > 0 else None


class ForeignWork:
    """How much of the machine's processor time other processes take, from now on.

    Args:
        server: root of the server's processes, None where it is not seen: then its work, on this machine, is that of others too.
    """

    def __init__(self, server: psutil.Process | None) -> None:
        self._roots = [psutil.Process(), *([server] if server is not None else [])]
        self._before = self._read()

    def percent(self) -> float:
        """Of all processor time since, what neither this process and those it started nor the server took."""
        passed, busy, own = (after - before for after, before in zip(self._read(), self._before, strict=True))
        return max(0.0, 100 * (busy - own) / passed) if passed > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Seconds: of all cores, those of work, and those of our own."""
        times = psutil.cpu_times()
        counted = {name: getattr(times, name) for name in times._fields if not name.startswith("guest")}
        idle = counted["idle"] + counted.get("iowait", 0.0) + counted.get("steal", 0.0)
        passed = sum(counted.values())
        return passed, passed - idle, sum(_cpu_seconds(process) for root in self._roots for process in process_tree(root))


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process and of those it started that have ended."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:  # ended between listing and reading: its parent counts it from now on
        return 0.0


def gpu_memory_mib(processes: Iterable[int]) -> float | None:
    """GPU memory these processes hold, MiB; None where the driver does not list them (no GPU, or a container's own numbering)."""
    wanted = set(processes)
    rows = [line.split(",") for line in nvidia_smi("--query-compute-apps=pid,used_memory")]
    held = [float(used) for pid, used in rows if int(pid) in wanted and used.strip().isdigit()]
    return sum(held) if held else None


def listening_process(port: int) -> psutil.Process | None:
    """The process that listens on a TCP port of this machine, None where it is not visible from here."""
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None:
            return psutil.Process(connection.pid)
    return None


def process_tree(root: psutil.Process) -> list[psutil.Process]:
    """A process and everything it started."""
    return [root, *root.children(recursive=True)]


class MemoryMeter:
    """Largest memory of a process tree while the block runs. It can be entered again: the largest of all blocks then counts.

    ``peak_rss_mib`` adds up resident sets, so pages that processes share count once for each; ``pss_mib``, read once at the
    end of the last block, splits them fairly.
    """

    INTERVAL = 0.25  # seconds

    def __init__(self, root: psutil.Process) -> None:
        self._root = root
        self._done = threading.Event()
        self.peak_rss_mib = 0.0
        self.pss_mib = 0.0

    def __enter__(self) -> Self:
        self._done.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        if error is None:
            self.pss_mib = sum(_field(process, "pss") for process in process_tree(self._root)) / MIB

    def _watch(self) -> None:
        while not self._done.wait(self.INTERVAL):
            try:
                tree = process_tree(self._root)
            except psutil.NoSuchProcess:  # the server is gone: whoever talks to it says so
                return
            self.peak_rss_mib = max(self.peak_rss_mib, sum(_field(process, "rss") for process in tree) / MIB)


def _field(process: psutil.Process, field: str) -> int:
    try:
        memory = process.memory_full_info() if field == "pss" else process.memory_info()
    except psutil.NoSuchProcess:  # ended between listing and reading
        return 0
    value: int = getattr(memory, field)
    return value


def _commit() -> str | None:
    """Commit of the code that measures, ``+changes`` where files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    if shutil.which("git") is None:
        return None
    head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return None
    changes = subprocess.run(
        ["git", "-C", folder, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=False
    )
    return head.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
