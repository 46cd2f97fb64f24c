"""The reporting channel: plain lines in a log, rich on a terminal, one process of a distributed run."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from serving import reporting

LONG = " ".join(["word"] * 100)
SCRIPT = f"""
from serving.reporting import logger, report_to_stderr
with report_to_stderr():
    logger.info("{LONG}")
    logger.info("[bold] 100 % of {{braces}}")
    logger.warning("beware")
    logger.debug("details")
print("result")
"""


def test_a_log_file_gets_one_plain_line_per_message(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "40"}
        done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=log, env=environment, check=True)
    assert (tmp_path / "log").read_text() == f"{LONG}\n[bold] 100 % of {{braces}}\nwarning: beware\n"
    assert done.stdout == b"result\n"


def test_only_the_main_process_of_a_distributed_run_reports() -> None:
    for rank, lines in (("0", 3), ("1", 0)):
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, env=os.environ | {"RANK": rank}, check=True)
        assert len(done.stderr.splitlines()) == lines
        assert done.stdout == b"result\n"


def test_a_terminal_gets_every_word_within_its_width() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60"}
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True)
        os.close(theirs)
        shown = b""
        while part := _read(terminal.fileno()):
            shown += part
    text = shown.decode()
    assert text.count("word") == 100
    assert "[bold] 100 % of {braces}" in text
    assert "warning: beware" in text
    assert max(map(len, text.splitlines())) <= 60, "rich wraps words, the terminal would break them"
    assert done.stdout == b"result\n"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # what Linux says at the end of a pseudo-terminal
        return b""


def test_code_that_imports_the_functions_sees_ordinary_records(caplog: pytest.LogCaptureFixture) -> None:
    before = reporting.logger.level, reporting.logger.propagate
    with reporting.report_to_stderr():
        reporting.logger.info("inside")
    reporting.logger.warning("outside")
    assert reporting.logger.handlers == []
    assert (reporting.logger.level, reporting.logger.propagate) == before
    assert caplog.record_tuples == [("tritonize", logging.WARNING, "outside")]
