"""Artifact folders: written atomically, each with a ``manifest.json`` that records where it came from.

A stage writes into the folder that :func:`publish` yields. The folder gets its final name in one step when it is complete, so a
stage that is killed leaves either the old artifact or the new one. :func:`is_current` compares what a stage is about to read with
what its last run recorded, so that unchanged work is not repeated.
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
from typing import TypedDict, TypeVar

import psutil
from pydantic import JsonValue, ValidationError

from serving.errors import ArtifactError
from serving.manifests import FIGURE_KINDS, SCHEMA_VERSION, Manifest, StageInputs
from serving.writing import writing

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
"""The signature of a manifest, beside it, if the artifact was signed. It is of no other file."""
DIGEST_FIELD = "manifest_sha256"
"""The field of a manifest that holds its own checksum."""
PROJECT = Path(__file__).parents[1]
"""The folder that holds our packages."""
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
"""Name in a staging folder of the replaced artifact while the target's name is free."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of ``renameat2``, from ``fcntl.h`` and ``stdio.h``."""

ManifestT = TypeVar("ManifestT", bound=Manifest)


class Provenance(TypedDict):
    """The fields of a manifest that do not depend on its kind."""

    created: datetime
    versions: dict[str, str]
    inputs: StageInputs
    files: dict[str, str]


@contextlib.contextmanager
def staging_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty hidden folder in ``parent`` and remove it afterwards, unless it was renamed.

    Its name holds the id of this process. The folders of processes that were killed are recognized by it and removed here.

    Args:
        parent: The folder to create it in.
        name: Name of the artifact, a part of the folder's name.
    """
    _clear_left(parent, name)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.{os.getpid()}.", suffix=".partial", dir=parent))
    try:
        yield staging
    finally:
        _clear(staging, parent / name)


@contextlib.contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target``; it becomes ``target`` if the block succeeds and is removed otherwise.

    The folder is exchanged with the one it replaces in one step. On file systems that cannot exchange folders the old one is moved
    away first; if the process is killed at that moment, the next run moves it back.

    Args:
        target: The artifact's folder.

    Raises:
        OSError: The disk is full, or the folders cannot be renamed; ``target`` is unchanged.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with writing(target), staging_folder(target.parent, target.name) as staging:
        fresh = staging / "fresh"
        fresh.mkdir()
        yield fresh
        if not target.exists():
            fresh.rename(target)
        elif not exchange(fresh, target):
            target.rename(staging / RETIRED)  # if the next line is not reached, _clear moves it back
            fresh.rename(target)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step.

    Returns:
        False if the system or the file system does not support it; nothing has changed then.

    Raises:
        OSError: The exchange is supported and failed.
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
    """Remove the staging folders that killed processes left in ``parent`` for that name."""
    for left, _ in abandoned_staging(parent, f"({re.escape(name)})"):
        _clear(left, parent / name)


def abandoned_staging(parent: Path, pattern: str) -> Iterator[tuple[Path, str]]:
    """Yield the staging folders of processes that have ended, with a part of the name of what they were made for.

    Args:
        parent: The folder to look in.
        pattern: Regular expression for the names. Its one group is the part that is returned.
    """
    for left in sorted(parent.glob(".*.partial")):
        made = re.fullmatch(rf"\.{pattern}\.(\d+)\.[^.]+\.partial", left.name)
        if made and not psutil.pid_exists(int(made[2])):
            yield left, made[1]


def _clear(staging: Path, target: Path) -> None:
    """Remove a staging folder; move a retired ``target`` back first if the target is missing."""
    retired = staging / RETIRED
    if retired.exists() and not target.exists():
        retired.rename(target)
    shutil.rmtree(staging, ignore_errors=True)  # the next run tries again


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under ``folder`` except its manifest, by relative path, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def fingerprint(paths: Iterable[Path], *, root: Path) -> dict[str, str]:
    """Return the SHA-256 of files by their path relative to ``root``.

    Args:
        paths: Files and folders under ``root``; all files of a folder count, except Python's caches of compiled modules.
        root: The folder that the keys are relative to.

    Raises:
        ArtifactError: A path is missing or listed twice.
    """
    found: dict[str, str] = {}
    for path in paths:
        if not path.exists():
            raise ArtifactError(f"{path} is missing", hint="is the installation complete?" if root == PROJECT else "")
        files = sorted(inner for inner in path.rglob("*") if inner.is_file() and inner.parent.name != "__pycache__")
        _merge(found, {inner.relative_to(root).as_posix(): sha256(inner) for inner in (files if path.is_dir() else [path])})
    return found


def code_fingerprint(modules: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of our own code by path.

    Args:
        modules: Paths of modules and folders relative to the project, such as ``serving/plan.py``.

    Raises:
        ArtifactError: A module is missing or listed twice.
    """
    return fingerprint((PROJECT / module for module in modules), root=PROJECT)


def task_code(folders: Iterable[str], task: str, tasks: Iterable[str]) -> list[str]:
    """Return the modules in folders without those of other tasks, as paths relative to the project.

    Args:
        folders: Paths relative to the project. The module of a task is in a folder called ``tasks`` and has the name of the task.
        task: Name of the task whose modules stay.
        tasks: Names of all tasks.
    """
    others = {f"{name.replace('-', '_')}.py" for name in tasks if name != task}
    return [
        path.relative_to(PROJECT).as_posix()
        for folder in folders
        for path in sorted((PROJECT / folder).rglob("*.py"))
        if path.parent.name != "tasks" or path.name not in others
    ]


def inputs_record(options: Mapping[str, object], *files: Mapping[str, str]) -> StageInputs:
    """Describe what a stage reads.

    Args:
        options: The options that decide the result, JSON-ready except for paths and tuples.
        files: Results of :func:`fingerprint` and :func:`code_fingerprint`.

    Raises:
        ArtifactError: Two files have the same key.
    """
    merged: dict[str, str] = {}
    for sums in files:
        _merge(merged, sums)
    return StageInputs(options=json_ready(options), files=merged)


def _merge(found: dict[str, str], more: Mapping[str, str]) -> None:
    """Add checksums to ``found``.

    Raises:
        ArtifactError: A key is there already: one of the two files would be forgotten.
    """
    if twice := sorted(found.keys() & more.keys()):
        raise ArtifactError(f"two inputs of a stage are called {twice[0]}", hint="rename one of them")
    found.update(more)


def json_ready(values: Mapping[str, object]) -> dict[str, JsonValue]:
    """Return ``values`` as JSON gives them back: tuples become lists, paths become strings."""
    content: dict[str, JsonValue] = json.loads(json.dumps(values, default=os.fspath, allow_nan=False))
    return content


def versions() -> dict[str, str]:
    """Return the installed versions of Python and of the libraries that shape an artifact."""
    found = {"python": platform.python_version()}
    for library in RECORDED_LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def provenance(inputs: StageInputs) -> Provenance:
    """Return the fields that every new manifest begins with; :func:`write_manifest` adds the checksums of the files."""
    return {"created": datetime.now(UTC).replace(microsecond=0), "versions": versions(), "inputs": inputs, "files": {}}


def write_manifest(folder: Path, manifest: ManifestT) -> ManifestT:
    """Write ``folder/manifest.json``.

    Args:
        folder: The artifact; it holds all of its other files already.
        manifest: The content, see :func:`provenance`.

    Returns:
        The manifest with the checksums of the files in ``folder`` and of itself.

    Raises:
        ValueError: A value is NaN or infinite, which JSON cannot hold.
    """
    complete = manifest.model_copy(update={"files": checksums(folder)})
    content = complete.model_dump(mode="json")
    content[DIGEST_FIELD] = manifest_digest(content)
    content["files"] = content.pop("files")  # the longest part stands last
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return complete.model_copy(update={DIGEST_FIELD: content[DIGEST_FIELD]})


def manifest_digest(content: Mapping[str, JsonValue]) -> str:
    """Return the SHA-256 of a manifest's content without the field that holds this checksum.

    Args:
        content: The content as JSON gives it. Neither the order of the fields nor the spaces between them count.
    """
    covered = {name: value for name, value in content.items() if name != DIGEST_FIELD}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(folder: Path, model: type[ManifestT]) -> ManifestT:
    """Read and validate ``folder/manifest.json``.

    Args:
        folder: The artifact.
        model: The kind of manifest.

    Raises:
        ArtifactError: The manifest is missing, damaged, altered, of another kind, or of another schema version.
    """
    return parse_manifest(folder, model, manifest_bytes(folder, model))


def manifest_bytes(folder: Path, model: type[Manifest]) -> bytes:
    """Read ``folder/manifest.json`` once. Whoever verifies its signature must use these bytes, and not read it again.

    Raises:
        ArtifactError: The manifest is missing or cannot be read.
    """
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        names = artifact_names(folder.parent.parent, model.artifact_kind) if folder.name == model.artifact_kind else []
        hint = f"make one with: {_remedy(folder, model)}" + (f"; --name can be {', '.join(names)}" if names else "")
        raise ArtifactError(f"no {model.artifact_kind} at {folder}", hint=hint) from None
    except OSError as error:
        raise ArtifactError(f"cannot read {folder / MANIFEST}: {error.strerror}") from error


def _remedy(folder: Path, model: type[Manifest]) -> str:
    return model.remedy.replace("NAME", folder.parent.name) if folder.name == model.artifact_kind else model.remedy


def parse_manifest(folder: Path, model: type[ManifestT], text: bytes) -> ManifestT:
    """Validate what was read from ``folder/manifest.json``.

    Args:
        folder: The artifact.
        model: The kind of manifest.
        text: The bytes of the manifest.

    Raises:
        ArtifactError: The manifest is damaged, altered, of another kind, or of another schema version.
    """
    path, anew = folder / MANIFEST, f"write it again with: {_remedy(folder, model)}"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not readable as JSON: {error}", hint=anew) from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind != model.artifact_kind:
        raise ArtifactError(f"{path} does not describe a {model.artifact_kind}: kind is {json.dumps(kind)}", hint=anew)
    if (found := content.get("schema_version")) != SCHEMA_VERSION:
        newer = isinstance(found, int) and found > SCHEMA_VERSION
        raise ArtifactError(
            f"{path}: schema_version is {json.dumps(found)}, this tritonize reads {SCHEMA_VERSION}",
            hint=f"upgrade tritonize, or {anew}" if newer else anew,
        )
    if content.get(DIGEST_FIELD) != manifest_digest(content):
        raise ArtifactError(f"{path} was altered: it does not have the checksum that it records", hint=anew)
    try:
        return model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_error(error)}", hint=anew) from error


def artifact_names(artifacts: Path, kind: str) -> list[str]:
    """Return the names that have an artifact of a kind.

    Args:
        artifacts: Folder of the artifacts.
        kind: Name of the artifact's folder: ``checkpoint`` or ``bundle``.
    """
    return sorted(path.parent.parent.name for path in artifacts.glob(f"*/{kind}/{MANIFEST}"))


def first_error(error: ValidationError) -> str:
    """Return one line that names the first wrong field and what is wrong with it."""
    first, *others = error.errors(include_url=False, include_context=False)
    field = ".".join(str(part) for part in first["loc"] if part not in FIGURE_KINDS)
    more = f" (and {len(others)} more)" if others else ""
    return f"{field}: {first['msg']}{more}"


def is_current(folder: Path, model: type[Manifest], inputs: StageInputs) -> bool:
    """Return whether ``folder`` holds what a stage would make of ``inputs`` with the installed libraries.

    An artifact whose files were changed or removed is not current. What a killed run moved away is moved back first.

    Args:
        folder: The artifact.
        model: The kind of its manifest.
        inputs: What the stage is about to read.
    """
    _clear_left(folder.absolute().parent, folder.name)
    try:
        manifest = read_manifest(folder, model)
    except ArtifactError:
        return False
    return (manifest.inputs, manifest.versions, manifest.files) == (inputs, versions(), checksums(folder))
