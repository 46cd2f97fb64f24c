"""Artifact folders: written aside and renamed into place, each with a ``manifest.json`` that says where it came from.

A stage writes into the folder that :func:`publish` yields. Nothing appears under the final name until all of it is there, and
it takes the place of what stood there in one step, so a stage killed at any moment leaves the one or the other, whole.
:func:`is_current` compares what a stage is about to read with what its last run recorded, so unchanged work is not done again.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import platform
import re
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
    "peft",
)


RETIRED = "retired"
"""In a staging folder: what stood under the target's name, while it does not stand there."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of ``renameat2``, from ``fcntl.h`` and ``stdio.h``."""


@contextlib.contextmanager
def staging_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty hidden folder in ``parent``, removed afterwards unless it was renamed away.

    It carries this process's id, so that what a killed one left behind is recognised and cleared up here.
    """
    _clear_left(parent, name)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.{os.getpid()}.", suffix=".partial", dir=parent))
    try:
        yield staging
    finally:
        _clear(staging, parent / name)


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target``; when the block ends well it becomes ``target``, otherwise it is removed.

    It changes places with the folder it replaces in one step. Where the file system cannot do that, there is a moment in which
    neither stands there; a run that is killed in it leaves the replaced one aside, and the next run puts it back.

    Raises:
        OSError: the folders cannot be renamed; ``target`` is as it was.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with staging_folder(target.parent, target.name) as staging:
        fresh = staging / "fresh"
        fresh.mkdir()
        yield fresh
        if not target.exists():
            fresh.rename(target)
        elif not _exchange(fresh, target):
            target.rename(staging / RETIRED)  # whatever happens from here to the next line, _clear puts it back
            fresh.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the file system cannot, and nothing has changed.

    Raises:
        OSError: it can, and failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), os.fspath(one), None, os.fspath(other))


def _clear_left(parent: Path, name: str) -> None:
    """Clear up what runs that were killed left in ``parent`` under that name."""
    for left in parent.glob(".*.partial"):
        made = re.fullmatch(rf"\.{re.escape(name)}\.(\d+)\.[^.]+\.partial", left.name)
        if made and not psutil.pid_exists(int(made[1])):
            _clear(left, parent / name)


def _clear(staging: Path, target: Path) -> None:
    """Remove a staging folder; what it holds of ``target`` goes back first, where nothing stands there."""
    retired = staging / RETIRED
    if retired.exists() and not target.exists():
        retired.rename(target)
    shutil.rmtree(staging, ignore_errors=True)  # what cannot be removed now is in nobody's way, and the next run tries again


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
        kind: ``checkpoint``, ``bundle``, ``repository`` or ``tuning``; readers refuse another kind.
        inputs: from :func:`inputs_record`.
        fields: what this kind adds (figures, labels, gates …), JSON-ready.

    Raises:
        ValueError: a figure is no finite number.
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
    # NaN and Infinity are no JSON: a figure that can be one must be recorded as None
    content = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(content + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Read ``folder/manifest.json``.

    Raises:
        ArtifactError: it is absent, not JSON, of another kind, or of a newer schema.
    """
    path = folder / MANIFEST
    stage = {"checkpoint": "finetune", "bundle": "export", "repository": "package", "tuning": "tune"}[kind]
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

    Files of the artifact that were changed or lost since count as not current. What a run that was killed while it replaced the
    folder left aside is put back first.
    """
    _clear_left(folder.absolute().parent, folder.name)
    try:
        manifest = read_manifest(folder, kind)
    except ArtifactError:
        return False
    recorded = [manifest.get(name) for name in ("inputs", "versions", "files")]
    return recorded == [dict(inputs), versions(), checksums(folder)]
