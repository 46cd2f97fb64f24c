"""How the lines of a server's log are written, as text or as JSON, and read again.

Records of :mod:`logging` may have the attributes ``source`` and those of :data:`FIELDS`, which ``extra`` gives.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from serving.reporting import logger
from serving.watch_options import LogFormat

OWN = "tritonize"
"""The source of the supervisor's own messages."""
FIELDS = ("model", "status", "request_id", "stream_id", "repeated", "repeated_ids")
"""Further fields of a JSON object: those that the record has."""
_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z (?:(?P<level>debug|warning|error|critical): )?(?:(?P<source>tritonserver|envoy): )?(?P<message>.*)"
)


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A line of a log.

    Attributes:
        level: Level as in :mod:`logging`.
        source: The program that wrote it.
        message: What it says.
    """

    level: int
    source: str
    message: str


class TextLineFormatter(logging.Formatter):
    """Puts time, level and source in front of each line of a message. The level of information and the own source are left out."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, such as ``2026-01-31T23:59:59.123Z warning: 3 rows are truncated``."""
        source = _source(record)
        said = super().format(record)
        said = said if source == OWN else f"{source}: {said}"
        said = said if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {said}"
        return "\n".join(f"{_time(record)} {line}" for line in said.splitlines())


class JsonLineFormatter(logging.Formatter):
    """Writes a message as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object, such as ``{"time": "2026-01-31T23:59:59.123Z", "level": "info", "source": "tritonize", …}``."""
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "source": _source(record),
            "message": super().format(record),
        }
        return json.dumps(fields | {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None})


def write_log(log_format: LogFormat) -> None:
    """Let what :func:`serving.reporting.report_to_stderr` writes from now on be a log, with the time in each line."""
    formatter = JsonLineFormatter() if log_format == "json" else TextLineFormatter()
    for handler in logger.handlers:
        handler.setFormatter(formatter)


def read_log_line(line: str) -> LogLine:
    """Read a line that one of the formatters wrote. Anything else, such as what Python prints, is a message of the supervisor."""
    if line.startswith("{"):
        try:
            fields = json.loads(line)
            return LogLine(
                level=logging.getLevelNamesMapping()[fields["level"].upper()], source=fields["source"], message=fields["message"]
            )
        except (ValueError, KeyError, AttributeError):
            return LogLine(level=logging.INFO, source=OWN, message=line)
    found = _LINE.fullmatch(line)
    if found is None:
        return _printed(line)
    level = logging.getLevelNamesMapping()[(found["level"] or "info").upper()]
    return LogLine(level=level, source=found["source"] or OWN, message=found["message"])


def _printed(line: str) -> LogLine:
    level = logging.ERROR if line.startswith("error: ") else logging.INFO
    return LogLine(level=level, source=OWN, message=line.removeprefix("error: "))


def _source(record: logging.LogRecord) -> str:
    source: str = getattr(record, "source", OWN)
    return source


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
