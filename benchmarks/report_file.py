"""A report on disk: ``report.json`` holds everything, raw samples included."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from benchmarks.report import OLDEST_VERSION, SCHEMA_VERSION, Report
from serving.artifact import first_error
from serving.errors import DataError

REPORT = "report.json"
_HINT = "give the report.json of a benchmark"
_DAMAGED = "the report is damaged or was edited: run tritonize benchmark again, or give another report.json"


def write_report(folder: Path, report: Report) -> None:
    """Write ``report.json`` into a folder: the report, and its figures by the names that gates use."""
    content = {"schema_version": SCHEMA_VERSION, **asdict(report), "figures": report.figures()}
    (folder / REPORT).write_text(json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> Report:
    """Read a report and validate every field.

    The figures are left out: :meth:`Report.figures` computes them again.

    Raises:
        DataError: The file is missing, is not a report, has an unsupported schema version, lacks fields, or has wrong or unknown
            ones.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no report at {file}", hint=_HINT) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not a benchmark report: {error}", hint=_HINT) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or version < OLDEST_VERSION:
        raise DataError(f"{file} is not a benchmark report of schema version {OLDEST_VERSION} to {SCHEMA_VERSION}", hint=_HINT)
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{file} is a benchmark report of schema version {version}, this tritonize reads up to {SCHEMA_VERSION}",
            hint="read it with the tritonize that wrote it",
        )
    try:
        fields = {key: value for key, value in content.items() if key not in ("schema_version", "figures")}
        return TypeAdapter(Report).validate_json(json.dumps(fields))
    except ValidationError as error:
        raise DataError(f"{file} is not a whole benchmark report: {first_error(error)}", hint=_DAMAGED) from error
