"""Several processes that train one model, as ``accelerate launch`` and ``torchrun`` start them: each runs the whole command.

Light: torch is only imported where there are several.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import click

PATIENCE = timedelta(hours=24)
"""How long processes wait for each other: what the main one does alone may take long (fetching, tokenizing, asking a teacher). One
that died is noticed by the launcher, at once."""


def world_size() -> int:
    """How many of them there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def say(line: str) -> None:
    """Print ``line`` on standard error, once."""
    if is_main_process():
        click.echo(line, err=True)


@contextlib.contextmanager
def main_first(device: str) -> Iterator[None]:
    """The main process goes through the block before all others do: it fetches and removes, they find what it left.

    Args:
        device: ``auto``, ``cpu`` or ``gpu``, on which they will train.
    """
    if world_size() == 1:
        yield
        return
    import torch
    from accelerate import PartialState

    on_gpu = device != "cpu" and torch.cuda.is_available()
    with PartialState(cpu=not on_gpu, timeout=PATIENCE).main_process_first():
        yield


def destroy_process_group() -> None:
    """End the group in an orderly way: torch warns of those that just go."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()
