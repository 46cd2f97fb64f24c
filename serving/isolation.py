"""What the processes that serve have in common: names of temporary files, the end with their parent, files for this user only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

TRACE = "tritonize_"
"""Prefix of the names of all temporary files and folders.

The process id and the process namespace of their owner follow it. They tell the files of a killed owner, which can be
removed, from those of an owner in another container on this machine."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Triton's Python backend creates its regions there
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
FCHMOD = {"x86_64": (0xC000003E, 91), "aarch64": (0xC00000B7, 52)}
"""By machine: the number of its system call interface (``AUDIT_ARCH_…``), and of the system call ``fchmod`` in it."""


def temporary_prefix() -> str:
    """Return the prefix of the names of this process's temporary files; see :data:`TRACE`."""
    return f"{TRACE}{os.getpid()}_{_namespace()}_"


def remove_abandoned_files() -> None:
    """Remove the temporary files of processes that were killed before they could do it themselves."""
    for place in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for left in place.glob(f"{TRACE}*_{_namespace()}_*"):
            owner = left.name.removeprefix(TRACE).split("_")[0]
            with contextlib.suppress(FileNotFoundError):  # another server that starts now removes them too
                if owner.isdigit() and not psutil.pid_exists(int(owner)) and left.stat().st_uid == os.getuid():
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextlib.contextmanager
def remains_removed(shm_prefix: str) -> Iterator[None]:
    """Remove after the block what a tritonserver that was killed leaves: shared memory, and a folder in ``/tmp``.

    Its Python backend makes the folder for packed environments, fills it at its start or never, and does not read ``TMPDIR``. A
    server whose folder is missing aborts at its end, so nothing is removed while another one runs that may have made the folder.

    Args:
        shm_prefix: Prefix of the names of the server's shared memory regions.
    """
    places = Path("/tmp")  # noqa: S108
    before = set(places.glob("python_env_*"))
    try:
        yield
    finally:
        for region in SHARED_MEMORY.glob(f"{shm_prefix}*"):
            region.unlink(missing_ok=True)
        made = set(places.glob("python_env_*")) - before
        if made and not any(process.info["name"] == "tritonserver" for process in psutil.process_iter(["name"])):
            for folder in made:
                with contextlib.suppress(OSError):  # it is in use, somebody else's, or gone
                    folder.rmdir()


def _namespace() -> int:
    """Return the number of the process namespace. Process ids of different containers differ by it."""
    return Path("/proc/self/ns/pid").stat().st_ino


def start_process(
    command: Sequence[str], *, prepare: Callable[[], None], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a child in a process group of its own. Its standard output and error are one stream of text.

    Args:
        command: The command line.
        prepare: Called in the child before it becomes the command.
        environment: The environment variables. None: those of this process.
    """
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        process_group=0,
        umask=0o077,
        preexec_fn=prepare,  # noqa: PLW1509
    )


def raise_file_limit() -> None:
    """Allow this process and its children as many open files as the system lets them have. Each connection needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def die_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_shared_memory_private() -> None:
    """Make every shared memory region that this process and its children create readable by this user only.

    The file creation mask of :func:`start_process` is not enough: Triton's Python backend sets the mode of its regions, which hold
    texts, with ``fchmod`` to 0644. A system call filter (see ``seccomp(2)``) makes that call succeed without effect.

    Raises:
        KeyError: The system calls of this machine are not known.
        OSError: Linux refused the filter.
    """
    interface, fchmod = FCHMOD[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    load, jump_equal, give = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
    allow, succeed = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with error 0
    instructions = [
        (load, 0, 0, 4),  # the interface
        (jump_equal, 0, 3, interface),
        (load, 0, 0, 0),  # the number of the call
        (jump_equal, 0, 1, fchmod),
        (give, 0, 0, succeed),
        (give, 0, 0, allow),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in instructions))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(instructions), ctypes.addressof(program)))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, described, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def describe_exit(code: int) -> str:
    """Describe the end of a process by its return code: ``was ended by SIGSEGV`` for -11."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-code}"


def describe_zombie(pid: int) -> str:
    """Describe the end of another process's child, which Linux remembers until its parent asks for it."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[-1])
    except (OSError, ValueError):
        return "died"
    return describe_exit(-(status & 0x7F) or status >> 8)
