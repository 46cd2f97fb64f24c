"""The records of the servers that this user runs, where other processes find them."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil

from serving.errors import ServerError
from serving.health_options import WATCHED_DRAIN_SECONDS
from serving.layout import current_generation, generation_folder
from serving.options import ServeOptions


@dataclass(frozen=True, kw_only=True)
class Running:
    """The record of a server that this user runs, written by its supervisor.

    Attributes:
        pid: Process id of the supervisor.
        started: Start of the supervisor in seconds after the machine's start. It tells the supervisor from a later process with
            the same id, even if the clock was set.
        http_port: The server's HTTP port.
        repository: The folder of the model repository.
        ready: Whether every ensemble has answered.
        ready_seconds: Time from the start of tritonserver until then, in seconds. None before.
        served: The folder of the models that are served (:mod:`serving.served_view`). Empty before they are chosen.
        control: Path of the socket that takes requests of the release commands. Empty if the server takes none.
        left_out: Why an ensemble of the repository is not served, by name.
        drain_seconds: Time for which it goes on serving at most when it is asked to stop, in seconds.
    """

    pid: int
    started: float
    http_port: int
    repository: str
    ready: bool
    ready_seconds: float | None = None
    served: str = ""
    control: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    drain_seconds: float = 0.0

    def generation_of(self, repository: Path, name: str) -> Path | None:
        """Return the folder of the generation that is served of an ensemble of a repository; None if it is not served.

        Args:
            repository: The model repository.
            name: Name of the ensemble.
        """
        generation = current_generation(Path(self.served), name) if self.served else None
        if generation is None:
            return None
        folder = generation_folder(repository.resolve(), name, generation)
        return folder if os.path.realpath(generation_folder(Path(self.served), name, generation)) == str(folder) else None

    def is_alive(self) -> bool:
        """Return whether that process still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(started(process) - self.started) < 1
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


class ServerRecord:
    """Keeps the record of this process's server up to date."""

    def __init__(self, options: ServeOptions) -> None:
        """Begin with a server that is not ready."""
        self._path = _state_file(options.http_port)
        self._lock = threading.Lock()
        self._running = Running(
            pid=os.getpid(),
            started=started(psutil.Process()),
            http_port=options.http_port,
            repository=str(options.repository),
            ready=False,
            drain_seconds=WATCHED_DRAIN_SECONDS if options.drain_seconds is None else options.drain_seconds,
        )
        self._write()

    def update(self, **changes: object) -> None:
        """Change fields of the record, in any thread."""
        with self._lock:
            self._running = replace(self._running, **changes)  # type: ignore[arg-type]
            self._write()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self._running)), encoding="utf-8")
        temporary.rename(self._path)


@contextlib.contextmanager
def recorded(options: ServeOptions) -> Iterator[ServerRecord]:
    """Keep a record of this process's server while the block runs.

    Raises:
        ServerError: This user has another server at the same port.
    """
    refuse_second(options.http_port)
    record = ServerRecord(options)
    try:
        yield record
    finally:
        found = find_running(options.http_port)
        if found is not None and found.pid == os.getpid():  # a server that was started at the same moment may have replaced it
            remove_record(options.http_port)


def started(process: psutil.Process) -> float:
    """Return the time from the machine's start to the process's, in seconds. Setting the clock does not change it."""
    return float(process.create_time() - psutil.boot_time())


def find_running(http_port: int) -> Running | None:
    """Return the server that this user runs at that port, or None."""
    try:
        running = Running(**json.loads(_state_file(http_port).read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return running if running.is_alive() else None


def running_servers() -> list[Running]:
    """Return the servers that this user runs, by rising HTTP port."""
    ports = sorted(int(path.stem) for path in state_folder().glob("*.json") if path.stem.isdecimal())
    return [running for port in ports if (running := find_running(port)) is not None]


def refuse_second(http_port: int) -> None:
    """Check that this user runs no server at that port.

    Raises:
        ServerError: There is one.
    """
    other = find_running(http_port)
    if other is not None:
        raise ServerError(
            f"you already have a server at HTTP port {http_port} (process {other.pid}, {other.repository})",
            hint=f"stop it with: tritonize stop --http-port {http_port}, or choose another --http-port",
        )


def state_folder() -> Path:
    """Return the folder with the records and logs of this user's servers. Only this user can read it.

    Raises:
        ServerError: The folder belongs to another user, is a link, or other users may write into it.
    """
    folder = Path(tempfile.gettempdir()) / f"tritonize-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ServerError(
            f"{folder} is not a folder that only you can write into", hint="remove it, or set TMPDIR to a folder of your own"
        )
    return folder


def _state_file(http_port: int) -> Path:
    return state_folder() / f"{http_port}.json"


def log_file(http_port: int) -> Path:
    """Return the log of the servers in the background at that port."""
    return state_folder() / f"{http_port}.log"


def remove_record(http_port: int) -> None:
    """Remove the record of a server that has ended. Its log stays."""
    _state_file(http_port).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it may still hold logs, and the records of other servers
        state_folder().rmdir()
