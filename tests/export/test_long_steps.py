"""Progress of long steps of an export: a bar on a terminal, lines in a log."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from export import long_steps
from export.long_steps import tracked


def test_a_log_has_a_line_where_a_step_is_long(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, logger="tritonize")
    monkeypatch.setattr(long_steps, "console", lambda: Console(file=io.StringIO(), force_terminal=False))
    assert list(tracked([5, 6, 7], "verifying fp32")) == [5, 6, 7]
    assert not caplog.messages, "it took no time"
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(long_steps.time, "monotonic", lambda: float(next(now)))
    assert list(tracked([5, 6, 7, 8], "verifying fp32")) == [5, 6, 7, 8]
    assert caplog.messages == ["verifying fp32: 1 of 4", "verifying fp32: 3 of 4"]


def test_a_terminal_has_a_bar_and_no_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, logger="tritonize")
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr(long_steps, "console", lambda: console)
    monkeypatch.setattr(long_steps, "REDRAWN", 0.0)
    assert list(tracked(range(3), "verifying [int8]")) == [0, 1, 2]
    assert "verifying [int8]" in shown.getvalue() and "2/3" in shown.getvalue()
    assert not caplog.messages
