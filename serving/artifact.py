"""Artifact folders: written aside and renamed into place, each with a ``manifest.json`` that says where it came from.

A stage writes into the folder that :func:`publish` yields. Nothing appears under the final name until all of it is there, so a
stage killed at any moment leaves what stood there before. :func:`is_current` compares what a stage is about to read
with what its last run recorded, so unchanged work is not done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from serving.errors import ArtifactError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
RECORDED_LIBRARIES = (
    "tritonize",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "datasets",
    "tokenizers",
)


@contextlib.contextmanager
def staging_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty hidden folder in ``parent``, removed afterwards unless it was renamed away.

    It carries this process's id, so that what a killed one left behind is recognised and removed here.
    """
    for left in parent.glob(f".{name}.*.partial"):
        if not psutil.pid_exists(int(left.name.split(".")[-3])):
            shutil.rmtree(left)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.{os.getpid()}.", suffix=".partial", dir=parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target``; when the block ends well it becomes ``target``, otherwise it is removed.

    The folder it replaces is moved aside first and deleted last, so no reader ever sees half of either.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with staging_folder(target.parent, target.name) as staging:
        fresh = staging / "fresh"
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(staging / "retired")
        fresh.rename(target)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under ``folder`` except its manifest, by path relative to it, in sorted order."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST and path.parent.name != "__pycache__"
    )
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def inputs_record(options: Mapping[str, Any], files: Iterable[Path]) -> dict[str, Any]:
    """What a stage reads: its options and the checksums of its input files (folders are walked), JSON-ready."""
    sums: dict[str, str] = {}
    for path in files:
        if path.is_dir():
            sums |= {f"{path.name}/{name}": digest for name, digest in checksums(path).items()}
        else:
            sums[path.name] = sha256(path)
    return {"options": json.loads(json.dumps(options, default=os.fspath)), "files": sums}


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape an artifact, as installed here."""
    found = {"python": platform.python_version()}
    for library in RECORDED_LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def write_manifest(folder: Path, kind: str, inputs: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Write ``folder/manifest.json`` over everything already in ``folder`` and return it.

    Args:
        kind: ``checkpoint``, ``bundle`` or ``repository``; readers refuse another kind.
        inputs: from :func:`inputs_record`.
        fields: what this kind adds (figures, labels, gates …), JSON-ready.
    """
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "inputs": dict(inputs),
        **fields,
        "files": checksums(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Read ``folder/manifest.json``.

    Raises:
        ArtifactError: it is absent, not JSON, of another kind, or of a newer schema.
    """
    path = folder / MANIFEST
    stage = {"checkpoint": "finetune", "bundle": "export", "repository": "package"}[kind]
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"no {kind} at {folder}", hint=f"make one with: tritonize {stage}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not readable as JSON: {error}", hint=f"write it anew with: tritonize {stage}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        raise ArtifactError(f"{path} does not describe a {kind}")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {manifest.get('schema_version')}, this tritonize reads {SCHEMA_VERSION}",
            hint=f"write it anew with: tritonize {stage}",
        )
    return manifest


def is_current(folder: Path, kind: str, inputs: Mapping[str, Any]) -> bool:
    """Whether ``folder`` already holds what a stage would make of ``inputs`` with the libraries installed now.

    Files of the artifact that were changed or lost since count as not current.
    """
    try:
        manifest = read_manifest(folder, kind)
    except ArtifactError:
        return False
    recorded = (manifest["inputs"], manifest["versions"], manifest["files"])
    return recorded == (dict(inputs), versions(), checksums(folder))
