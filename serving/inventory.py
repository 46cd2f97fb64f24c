"""Lists the packaged models of a repository: what they are, which servers serve them, and what is out of date."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from serving.artifact import read_manifest
from serving.errors import ArtifactError
from serving.integrity import LISTED_BYTES, CheckedEnsemble
from serving.layout import current_folder, earlier_entries, package_entries
from serving.lineage import is_outdated, is_packaged_from
from serving.manifests import BundleManifest, RepositoryManifest
from serving.options import ServerPort
from serving.packages import find_packages
from serving.server_naming import naming_server
from serving.server_record import Running


@dataclass(frozen=True, kw_only=True)
class InventoryEntry:
    """A packaged model, or what is left of one.

    Attributes:
        name: Name of the ensemble.
        state: ``ready``: it can be served; ``damaged``: it cannot; ``orphan``: it has no ensemble.
        task: Its task; None if its manifest cannot be read. So are the next three.
        precision: Its precision.
        device: ``cpu`` or ``gpu``.
        packaged: The time at which it was packaged.
        bytes: Size of the files of all its generations, bytes.
        ports: HTTP ports of this user's servers that serve it.
        notes: What is out of date or wrong, and what to do, one sentence each.
    """

    name: str
    state: Literal["ready", "damaged", "orphan"]
    task: str | None = None
    precision: str | None = None
    device: str | None = None
    packaged: datetime | None = None
    bytes: int
    ports: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())


def take_inventory(repository: Path, artifacts: Path, servers: Sequence[Running]) -> list[InventoryEntry]:
    """List what tritonize packaged into a repository, by name. Models of other tools are left out.

    Args:
        repository: The model repository.
        artifacts: Folder of the artifacts that it was packaged from.
        servers: The running servers.
    """
    found = find_packages(repository, largest=LISTED_BYTES)
    entries = [_ready(repository, artifacts, ensemble, servers) for ensemble in found.ensembles.values()]
    for name, error in found.damaged.items():
        problem = error.message_with_hint
        notes = (problem, *_served_notes(repository, name, servers, known=problem))
        size = _size([*package_entries(repository, name), *earlier_entries(repository, name)])
        ports = _ports(repository, name, servers)
        entries.append(InventoryEntry(name=name, state="damaged", bytes=size, ports=ports, notes=notes))
    for orphan in found.orphans:
        notes = (f"{orphan.problem} ({orphan.hint})", *_served_notes(repository, orphan.name, servers))
        entries.append(InventoryEntry(name=orphan.name, state="orphan", bytes=_size(orphan.paths), notes=notes))
    return sorted(entries, key=lambda entry: entry.name)


def _ready(repository: Path, artifacts: Path, ensemble: CheckedEnsemble, servers: Sequence[Running]) -> InventoryEntry:
    manifest, name = ensemble.manifest, ensemble.name
    return InventoryEntry(
        name=name,
        state="ready",
        task=manifest.task,
        precision=manifest.precision,
        device=manifest.device,
        packaged=manifest.created,
        bytes=_size(package_entries(repository, name)),
        ports=_ports(repository, name, servers),
        notes=(*_engine_notes(manifest), *_bundle_notes(manifest, artifacts), *_served_notes(repository, name, servers)),
    )


def _engine_notes(manifest: RepositoryManifest) -> Iterator[str]:
    if manifest.layout == "vllm":
        yield "for the official Triton image with vLLM: tritonize serve leaves it out"


def _bundle_notes(manifest: RepositoryManifest, artifacts: Path) -> Iterator[str]:
    """Say what has changed since the model was packaged, as far as its bundle is found."""
    bundle_name = manifest.bundle.name or manifest.name
    bundle = artifacts / bundle_name / BundleManifest.artifact_kind
    try:
        exported = read_manifest(bundle, BundleManifest)
    except ArtifactError:
        return
    if not is_packaged_from(manifest, bundle):
        yield f"older than its bundle: package it again with: tritonize package --name {manifest.name} --bundle {bundle}"
    if is_outdated(bundle, exported):
        yield f"its bundle is older than its checkpoint: export it again with: tritonize export --name {bundle_name}"


def _ports(repository: Path, name: str, servers: Sequence[Running]) -> tuple[int, ...]:
    return tuple(server.http_port for server in servers if server.generation_of(repository, name) is not None)


def _served_notes(repository: Path, name: str, servers: Sequence[Running], *, known: str = "") -> Iterator[str]:
    """Say which servers serve another generation than the packaged one, or none, and why unless that is known."""
    current = current_folder(repository.resolve(), name)
    for server in servers:
        generation = server.generation_of(repository, name)
        if generation is not None and generation != current:
            command = f"tritonize promote {name} --http-port {server.http_port}"
            yield f"the server at HTTP port {server.http_port} serves an earlier package: promote this one with: {command}"
        if name in server.left_out and Path(server.repository).resolve() == repository.resolve():
            reason = server.left_out[name]
            why = "" if reason == known else f": {naming_server(reason, ServerPort(http_port=server.http_port))}"
            yield f"the server at HTTP port {server.http_port} leaves it out{why}"


def _size(paths: Sequence[Path]) -> int:
    """Return the size of files and of all files in folders, bytes. Links are not followed."""
    return sum(_size_of(path) for path in paths if os.path.lexists(path))


def _size_of(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(_size_of(Path(entry.path)) for entry in os.scandir(path))
