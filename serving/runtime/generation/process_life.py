"""Ends the process of a model that cannot go on, or whose server is gone: no client waits for it, and it does not outlive it."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable

CHECK_SECONDS = 0.5


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
    """End this process soon after the one that started it, whatever this one is doing then."""
    threading.Thread(target=_wait_for_the_end_of, args=(os.getppid(),), name="end with parent", daemon=True).start()


def _wait_for_the_end_of(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_SECONDS)
    os._exit(1)
