"""The first process of a container: it forwards signals to the program, and waits for orphaned processes that end."""

from __future__ import annotations

import contextlib
import os
import signal

FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


def leave_first_process() -> None:
    """Return in a child if this process is the first one of a container; otherwise return at once.

    The first process stays behind. Linux gives it every process whose parent has ended, and none of its signals has an effect that
    it has not asked for. It ends with the exit code of the child, and the container with it. Call this before threads are started.
    """
    if os.getpid() == 1:
        become_parent()


def become_parent() -> None:
    """Return in a child. This process does the duties of a first one until the child has ended, and ends with its exit code."""
    awaited = FORWARDED | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # a signal that comes before sigwait waits for it
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # Ctrl-C on the terminal of a container reaches the first process alone, which forwards it
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_attend(child, awaited))


def _attend(child: int, awaited: set[signal.Signals]) -> int:
    """Forward signals to a child and wait for every process that ends. Return the child's exit code, as a shell would."""
    while True:
        number = signal.sigwait(awaited)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(child, number)
            continue
        for pid, status in _ended():
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


def _ended() -> list[tuple[int, int]]:
    """Wait for all children that have ended: several may be behind one SIGCHLD."""
    found: list[tuple[int, int]] = []
    with contextlib.suppress(ChildProcessError):
        while (entry := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(entry)
    return found
