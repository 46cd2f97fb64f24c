"""Distributed training: several processes, started by ``accelerate launch`` or ``torchrun``, that each run the whole command.

Imports torch only if there are several processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

TIMEOUT = timedelta(hours=24)
"""How long processes wait for each other. What the main process does alone may take long (fetching, tokenizing, running the
teacher); the launcher notices at once if a process dies."""


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def main_first(device: str) -> Iterator[None]:
    """Run the block in the main process first, then in the others, which find what it fetched or removed.

    Args:
        device: Device of the training: ``auto``, ``cpu`` or ``gpu``.
    """
    if world_size() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    on_gpu = device != "cpu" and torch.cuda.is_available()
    with PartialState(cpu=not on_gpu, timeout=TIMEOUT).main_process_first():
        yield


def destroy_process_group() -> None:
    """End the process group, because torch warns if a process leaves it open."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()
