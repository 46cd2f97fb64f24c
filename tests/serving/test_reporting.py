"""The reporting channel: plain lines in a log, rich on a terminal, one process of a distributed run."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime
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


def test_a_terminal_gets_whole_lines_too() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "60"}
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=theirs, env=environment, check=True)
        os.close(theirs)
        shown = b""
        while part := _read(terminal.fileno()):
            shown += part
    assert shown.decode() == f"{LONG}\r\n[bold] 100 % of {{braces}}\r\nwarning: beware\r\n"
    assert done.stdout == b"result\n"


def test_messages_appear_above_a_progress_bar() -> None:
    script = """
from rich.progress import track
from serving.reporting import console, logger, report_to_stderr
with report_to_stderr():
    for number in track(range(3), "training", console=console()):
        logger.info(f"message {number}")
"""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        subprocess.run([sys.executable, "-c", script], stderr=theirs, env=os.environ | {"TERM": "xterm"}, check=True)
        os.close(theirs)
        shown = b""
        while part := _read(terminal.fileno()):
            shown += part
    text = shown.decode()
    assert "training" in text
    for number in range(3):
        before, _, after = text.partition(f"message {number}\r\n")
        assert before.endswith("\x1b[2K"), "the bar is erased before the message"
        assert after.lstrip("\x1b[0m").startswith("training"), "and drawn again below it"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # what Linux says at the end of a pseudo-terminal
        return b""


def test_a_log_has_the_time_in_front_of_every_line() -> None:
    script = """
from serving.log_format import write_log
from serving.reporting import logger, report_to_stderr
with report_to_stderr():
    logger.info("before")
    write_log("text")
    logger.info("one\\ntwo")
    logger.error("three")
with report_to_stderr():
    logger.info("after")
"""
    for zone in ("UTC", "Asia/Tokyo"):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"TZ": zone}, check=True
        )
        before, *stamped, after = done.stderr.splitlines()
        assert (before, after) == ("before", "after")
        assert [line.split(" ", 1)[1] for line in stamped] == ["one", "two", "error: three"]
        times = {datetime.fromisoformat(line.split(" ", maxsplit=1)[0]) for line in stamped}
        assert all(abs((datetime.now(UTC) - time).total_seconds()) < 60 for time in times), "it is UTC in every zone"


def test_a_log_that_is_full_becomes_a_previous_one_of_three(tmp_path: Path) -> None:
    script = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from serving.reporting import LogLimit, logger, report_to_stderr
with report_to_stderr():
    logger.addHandler(LogLimit(Path(sys.argv[1]), max_bytes=100))
    for number in range(60):
        logger.info(f"line {number} of the log")
"""
    log = tmp_path / "8000.log"
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-c", script, log], stderr=file, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8000.log", "8000.log.1", "8000.log.2", "8000.log.3"]
    kept = "".join(path.read_text() for path in sorted(tmp_path.iterdir(), reverse=True)[:3]) + log.read_text()
    numbers = [int(line.split()[1]) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 60)) and 0 < numbers[0] < 50, "the last ones, without a gap"
    assert all(path.stat().st_size < 150 for path in tmp_path.iterdir())


def test_code_that_imports_the_functions_sees_ordinary_records(caplog: pytest.LogCaptureFixture) -> None:
    before = reporting.logger.level, reporting.logger.propagate
    with reporting.report_to_stderr():
        reporting.logger.info("inside")
    reporting.logger.warning("outside")
    assert reporting.logger.handlers == []
    assert (reporting.logger.level, reporting.logger.propagate) == before
    assert caplog.record_tuples == [("tritonize", logging.WARNING, "outside")]
