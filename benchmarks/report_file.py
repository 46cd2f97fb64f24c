"""A report on disk: ``report.json`` (everything, raw samples inside), and the pages made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from benchmarks.report import SCHEMA_VERSION, Report
from benchmarks.speed import Spans
from serving.errors import DataError

_NO_REPORT = "give the report.json of a benchmark"

Samples = dict[str, dict[str, list[float]]]
"""Of every speed by its name and the round (``….r1``; of processes side by side the process too: ``….r1.0``): ``start_us``, when
each call began, µs after the first of the whole benchmark, and ``took_us``, how long it took, µs. Loads on the server have a clock of
their own, the load generator's, and begin at 0 too."""


def to_json(report: Report, samples: Mapping[str, Spans]) -> dict[str, Any]:
    """The whole of ``report.json``: the report, its figures by the names that gates use, and the samples behind every speed."""
    return {
        "schema_version": SCHEMA_VERSION,
        **asdict(report),
        "figures": report.figures(),
        "samples": _told(samples),
    }


def _told(samples: Mapping[str, Spans]) -> Samples:
    begun: dict[bool, int] = {}
    for name, spans in samples.items():
        clock = name.startswith("served.")
        begun[clock] = min(int(spans[0, 0]), begun.get(clock, int(spans[0, 0])))
    return {
        name: {
            "start_us": ((spans[:, 0] - begun[name.startswith("served.")]) / 1e3).round(1).tolist(),
            "took_us": ((spans[:, 1] - spans[:, 0]) / 1e3).round(1).tolist(),
        }
        for name, spans in samples.items()
    }


def spans_of(sample: Mapping[str, list[float]]) -> Spans:
    """A sample as it was measured: start and end of each call, ns."""
    start, took = (np.array(sample[key]) * 1e3 for key in ("start_us", "took_us"))
    spans: Spans = np.stack([start, start + took], axis=1).round().astype(np.int64)
    return spans


def write_report(folder: Path, report: Report, samples: Mapping[str, Spans], markdown: str) -> None:
    """Write ``report.json`` and ``report.md`` into ``folder``."""
    content = json.dumps(to_json(report, samples), ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(content + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown, encoding="utf-8")


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
