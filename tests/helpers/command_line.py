"""The command line in one process of its own, with an environment of its own, for several commands one after another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LOOP = """
import contextlib, io, json, os, sys
from export.cli import main

for line in sys.stdin:
    asked = json.loads(line)
    os.chdir(asked["folder"])
    os.environ |= asked["environment"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(asked["arguments"])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@dataclass(frozen=True)
class CommandLine:
    """The running process. Libraries that read their environment when they are imported are imported there once."""

    process: subprocess.Popen[str]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one command in the current folder. What is given of the environment stays for the next."""
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = {"arguments": arguments, "folder": str(Path.cwd()), "environment": environment}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        code, out, err = json.loads(self.process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, out, err)


@contextmanager
def command_line(**environment: str) -> Iterator[CommandLine]:
    """Start the process; it ends with the block."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", LOOP], env=os.environ | environment, text=True, **streams) as process:  # type: ignore[call-overload]
        yield CommandLine(process)
