"""Checksums of rows: figures of two reports are comparable where they are the same."""

from __future__ import annotations

import hashlib
import json

from benchmarks.inputs import BenchmarkRows
from benchmarks.report import length_key


def timed_checksums(rows: BenchmarkRows) -> dict[str, str]:
    """Compute the checksum of the timed rows of each length."""
    return {length_key(length): checksum(timed) for length, timed in rows.timed.items()}


def checksum(value: object) -> str:
    """Compute the checksum of rows, or of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
