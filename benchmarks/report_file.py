"""A report on disk: ``report.json``, everything in one file, raw samples inside."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from benchmarks.report import SCHEMA_VERSION, Report
from benchmarks.samples import Samples
from serving.errors import DataError

_NO_REPORT = "give the report.json of a benchmark"


def to_json(report: Report, samples: Samples) -> dict[str, Any]:
    """The whole of ``report.json``: the report, its figures by the names that gates use, and the samples behind every speed."""
    return {
        "schema_version": SCHEMA_VERSION,
        **asdict(report),
        "figures": report.figures(),
        "samples": samples,
    }


def write_report(folder: Path, report: Report, samples: Samples) -> None:
    """Write ``report.json`` into ``folder``."""
    content = json.dumps(to_json(report, samples), ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(content + "\n", encoding="utf-8")


def read_report(path: Path) -> tuple[Report, Samples]:
    """A report written earlier, every field checked.

    Raises:
        DataError: the file is no report, of another schema version, or not whole.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"no report at {path}", hint=_NO_REPORT) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a benchmark report: {error}", hint=_NO_REPORT) from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{path} is not a benchmark report of schema version {SCHEMA_VERSION}", hint=_NO_REPORT)
    try:
        report = TypeAdapter(Report).validate_python({key: content[key] for key in content if key in Report.__dataclass_fields__})
        samples = TypeAdapter(Samples).validate_python(content.get("samples"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is not a whole benchmark report: {place}: {first['msg']}", hint=_NO_REPORT) from error
    return report, samples
