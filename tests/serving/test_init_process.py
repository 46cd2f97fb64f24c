"""The first process of a container. Here it is one that Linux gives the orphans below it, as it does to a first process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

PROGRAM = """
import ctypes, os, signal, subprocess, sys, time
from serving.init_process import become_parent, leave_first_process

leave_first_process()  # this is not the first process of a container
first = os.getpid()
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
become_parent()
assert os.getpid() != first and os.getppid() == first
exec(sys.argv[1])
"""


def start(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, program], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("program", "code"), [("sys.exit(3)", 3), ("pass", 0), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_it_ends_with_the_exit_code_of_the_program(program: str, code: int) -> None:
    with start(program) as process:
        assert process.wait(20) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_it_forwards_signals(number: signal.Signals) -> None:
    handled = f"signal.signal({int(number)}, lambda *_: sys.exit(7)); print('waiting', flush=True); time.sleep(30)"
    with start(handled) as process:
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        process.send_signal(number)
        assert process.wait(20) == 7


def test_it_waits_for_orphans() -> None:
    """Each ends without a parent that waits for it: none may stay as a zombie, whatever ends first."""
    orphans = "for _ in range(5): subprocess.run(['sh', '-c', 'sleep 0.2 & sleep 0.1 & exit 0'])"
    with start(f"{orphans}; print('made', flush=True); time.sleep(30)") as process:
        assert process.stdout is not None and process.stdout.readline() == "made\n"
        first = psutil.Process(process.pid)
        deadline = time.monotonic() + 20
        while len(first.children()) > 1:
            assert time.monotonic() < deadline, first.children()
            time.sleep(0.05)
        (program,) = first.children()
        assert program.status() != psutil.STATUS_ZOMBIE
        assert os.getpgid(program.pid) == program.pid, "Ctrl-C on the terminal reaches it only once"
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
