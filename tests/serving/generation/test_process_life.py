"""The process of a model ends when it cannot go on, or when whoever started it is gone."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import psutil


def started(script: str) -> subprocess.Popen[str]:
    prelude = "import os, sys, time\nfrom serving.runtime.generation.process_life import end_process, end_with_parent\n"
    return subprocess.Popen([sys.executable, "-c", prelude + textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)


def test_an_error_that_nobody_survives_is_logged_and_ends_the_process() -> None:
    process = started(
        """
        import threading
        def fail():
            try:
                raise MemoryError("the graph fails")
            except MemoryError as error:
                end_process(error, lambda text: print(text, flush=True))
        threading.Thread(target=fail).start()
        time.sleep(60)
        """
    )
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "its process ends" in printed and "MemoryError: the graph fails" in printed


def test_a_process_ends_after_the_one_that_started_it() -> None:
    process = started(
        """
        if os.fork() == 0:
            end_with_parent()
            print(os.getpid(), flush=True)
            time.sleep(60)
        time.sleep(1.5)
        """
    )
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    assert process.wait(30) == 0
    process.stdout.close()
    end = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
