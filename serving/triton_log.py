"""What tritonserver prints: the level and the text of each line, lines that say nothing, and why a start failed."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NO_GPU_NOISE = (
    "CudaDriverHelper",
    "CUDA driver version is insufficient",
    "pinned memory pool",
    "Failed to initialize NVML",
    "DCGM unable to start",
    "pinned system memory",
)
"""Parts of the errors that the server logs on every machine without a GPU."""
NOISE = ("which fails to convert to integral number", "NODELAY NOT SUPPORTED")
"""Parts of lines about the links in a repository (see ``serving.repository``), and about every connection through a socket."""
PREFIX = re.compile(r"^([IWEF])\d{4} [\d:.]+ \d+ \S+\] ")
"""The level, time, thread and source line in front of a message of the server."""
LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
PASSING = re.compile(
    r"lock_exception|[Ss]tub process.* (?:not healthy|exited unexpectedly)|waiting for the stub process|fork the stub process"
)
"""What it prints where a start failed because a process did not answer in time, as on a busy machine. The next may succeed."""
THROWN, SAID = "terminate called after throwing an instance of '", "what():"


@dataclass(frozen=True)
class TritonLine:
    """One line of the server.

    Attributes:
        level: Level as in :mod:`logging`.
        text: The message.
    """

    level: int
    text: str


def read_line(line: str) -> TritonLine:
    """Read a line. One without a level, which a library or the C++ runtime prints, is an error if it says so."""
    found = PREFIX.match(line)
    if found:
        return TritonLine(LEVELS[found[1]], line[found.end() :])
    return TritonLine(logging.ERROR if line.startswith(("error:", "terminate called")) or SAID in line else logging.INFO, line)


def is_noise(line: str, *, gpu: bool) -> bool:
    """Return whether a line says nothing about this server."""
    return any(part in line for part in (NOISE if gpu else NOISE + NO_GPU_NOISE))


def is_passing(lines: Iterable[str]) -> bool:
    """Return whether the server failed for a reason that may have passed at the next start."""
    return any(PASSING.search(line) for line in lines)


def failure_reason(lines: Sequence[str]) -> str:
    """Return why the server ended, from its last lines: an exception, or the first model that could not be loaded."""
    thrown = [line.partition(THROWN)[2].rstrip("'") for line in lines if THROWN in line]
    said = [line.partition(SAID)[2].strip() for line in lines if SAID in line]
    if thrown:
        return ": ".join(dict.fromkeys([thrown[-1], *said[-1:]]))
    errors = [_first_line(found.text) for found in map(read_line, lines) if found.level >= logging.ERROR]
    # the first of them is the cause of the others
    causes = [error for error in errors if "failed to load '" in error or error.startswith("Poll failed for")]
    passing = [error for error in errors if PASSING.search(error)]
    other = [line for line in lines if line and not PREFIX.match(line)]
    return next(iter([*causes, *passing, *errors[-1:], *other[-1:]]), "it printed no error")


def _first_line(text: str) -> str:
    r"""Return the first line of a message. Triton writes some in quotation marks, with ``\n`` for the ends of lines."""
    return text.split("\\n", maxsplit=1)[0].strip('"')
