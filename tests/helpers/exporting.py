"""A checkpoint as `tritonize export` makes a bundle of it."""

from __future__ import annotations

from pathlib import Path


def export_bundle(artifacts: Path, checkpoint: Path, rows: Path, *arguments: str) -> Path:
    from export.cli import main

    code = main(
        [
            "export",
            "--name",
            "tiny",
            "--artifacts",
            str(artifacts),
            "--checkpoint",
            str(checkpoint),
            "--test",
            str(rows),
            "--max-length",
            "96",
            "--max-metric-drop",
            "100",
            *(() if "fp32" in arguments else ("--min-agreement", "0")),
            *arguments,
        ]
    )
    assert code == 0
    return artifacts / "tiny" / "bundle"
