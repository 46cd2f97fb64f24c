"""Ends the process of a model that cannot go on, or whose server is gone: no client waits for it, and it does not outlive it."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
import traceback
from collections.abc import Callable

CHECK_SECONDS = 0.5
STUCK_SECONDS = 10.0
"""Seconds without any Python code after which a process is given up. Triton gives it up after one."""


def end_process(error: BaseException, log: Callable[[str], None]) -> None:
    """Log the traceback of an error that no request can survive, and end the process. Whoever started it starts another one.

    Args:
        error: What happened.
        log: Writes to the server's log.
    """
    try:
        log("the model cannot go on, so its process ends:\n" + "".join(traceback.format_exception(error)))
    finally:
        os._exit(1)


def end_with_parent() -> None:
    """End this process soon after the one that started it, whatever this one is doing then.

    A thread that waits for Triton's answer to a message holds Python's lock, and waits for ever if Triton is gone: then no Python
    code runs any more. So a timer of the C library, which Python code has to put off again and again, ends the process too.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), name="end with parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
        time.sleep(CHECK_SECONDS)
    os._exit(1)
