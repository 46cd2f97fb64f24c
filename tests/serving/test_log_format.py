"""Lines of a server's log: text and JSON, written and read again; and the options of what a server tells."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from export.cli import main
from serving.log_format import JsonLineFormatter, LogLine, TextLineFormatter, read_log_line
from serving.tracing import trace_flags
from serving.watch_options import WatchOptions, parse_collector
from tests.helpers.surroundings import free_port


def record(level: int, message: str, **extra: str) -> logging.LogRecord:
    return logging.getLogger("tritonize").makeRecord("tritonize", level, __file__, 1, message, (), None, extra=extra)


@pytest.mark.parametrize("formatter", [TextLineFormatter(), JsonLineFormatter()])
@pytest.mark.parametrize(
    ("level", "message", "source"),
    [
        (logging.INFO, "starting: tritonize 1", "tritonize"),
        (logging.WARNING, "x is left out: y", "tritonize"),
        (logging.ERROR, "failed to load 'x'", "tritonserver"),
        (logging.CRITICAL, "assert failure: false", "envoy"),
        (logging.INFO, '{"a": 1}', "tritonserver"),
    ],
)
def test_a_line_is_read_as_it_was_written(formatter: logging.Formatter, level: int, message: str, source: str) -> None:
    extra = {} if source == "tritonize" else {"source": source}
    line = formatter.format(record(level, message, **extra))
    assert read_log_line(line) == LogLine(level=level, source=source, message=message)


def test_json_is_one_line_with_what_is_known() -> None:
    line = JsonLineFormatter().format(record(logging.ERROR, 'Traceback\n  "ü"', model="m", request_id="7"))
    fields = json.loads(line)
    assert "\n" not in line and line.isascii()
    assert fields.pop("time").endswith("Z")
    assert fields == {"level": "error", "source": "tritonize", "message": 'Traceback\n  "ü"', "model": "m", "request_id": "7"}


def test_a_start_that_fails_is_an_object_too(tmp_path: Path) -> None:
    ports = [f"--{name}-port={free_port()}" for name in ("http", "grpc", "metrics", "health")]
    command = [sys.executable, "-m", "export.cli", "serve", "--log-format", "json", "--repository", str(tmp_path), *ports]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert lines[-1]["level"] == "error" and str(tmp_path) in lines[-1]["message"]


@pytest.mark.parametrize("line", ["", "{", "{}", '{"level": 1}', '{"level": "loud", "source": "x", "message": "y"}', "free text"])
def test_other_lines_are_messages(line: str) -> None:
    assert read_log_line(line) == LogLine(level=logging.INFO, source="tritonize", message=line)


def test_an_error_without_a_time_is_one() -> None:
    assert read_log_line("error: no").level == logging.ERROR


@pytest.mark.parametrize(
    "url",
    ["", "collector", "collector:4318", "https://c:4318/v1/traces", "http://c:4318", "http://c:4318/", "http://:1/v1/traces",
     "http://c:x/v1/traces", "http://c:4318/v1/traces?a=1", "http://c:4318/v1/traces,b=2", "http://c:4318/v1 /traces", "http://[c/v1/traces"],
)  # fmt: skip
def test_an_address_that_is_no_collector_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--trace", url]) == 2
    assert "http://127.0.0.1:4318/v1/traces" in capsys.readouterr().err


@pytest.mark.parametrize(("rate", "one_in"), [(1.0, 1), (0.01, 100), (0.3, 3), (0.0, 2**31 - 1)])
def test_a_share_becomes_one_request_in_so_many(rate: float, one_in: int) -> None:
    url = parse_collector("http://collector:4318/v1/traces")
    flags = trace_flags(WatchOptions(trace=url, trace_rate=rate))
    assert f"--trace-config=rate={one_in}" in flags and f"--trace-config=opentelemetry,url={url}" in flags
    assert trace_flags(WatchOptions()) == []
