"""What ``tritonize tune`` found for a bundle: the record that packaging reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.artifact import MANIFEST, read_manifest, sha256
from serving.configuration import Configuration
from serving.errors import ArtifactError
from serving.machine import hardware

_ANEW = "measure anew with: tritonize tune NAME --fresh, or remove {}"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A finished tuning.

    Args:
        folder: where its record is.
        winner: how the model is best served.
        throughput, p99_ms: rows per second of the winner and the 99th percentile of its latency, ms, under the load of
            ``concurrency`` clients.
        latency_p99_ms: the latency that was allowed, ms; None where any was.
        bundle_sha256: of the manifest of the bundle that was measured.
        hardware: of the machine it was measured on, see :func:`serving.machine.hardware`.
        created: when it was finished, ISO 8601.
        sha256: of the record itself.
    """

    folder: Path
    winner: Configuration
    throughput: float
    p99_ms: float
    concurrency: int
    latency_p99_ms: float | None
    bundle_sha256: str
    hardware: dict[str, Any]
    created: str
    sha256: str

    def objection(self, bundle: Path, *, precision: str, device: str) -> str | None:
        """Why the winner is not what to package, None where it is.

        Args:
            bundle: folder of what is packaged.
            precision: what was asked for, or ``auto``.
            device: ``cpu`` or ``gpu``.
        """
        here = hardware()
        if precision not in ("auto", self.winner.precision):
            return f"the best is {self.winner.precision}, and {precision} was asked for"
        if self.bundle_sha256 != sha256(bundle / MANIFEST):
            return f"{self.folder} is of another export"
        if device != self.winner.device:
            return f"{self.folder} was measured on a {self.winner.device.upper()}"
        if here["cores"] != self.hardware["cores"]:
            return f"{self.folder} was measured on {self.hardware['cores']} cores, here are {here['cores']}"
        if device == "gpu" and here["gpus"] != self.hardware["gpus"]:
            return f"{self.folder} was measured on {', '.join(self.hardware['gpus'])}, here is {', '.join(here['gpus']) or 'none'}"
        return None

    def differences(self, chosen: Configuration) -> list[str]:
        """Names of the choices in which ``chosen`` is not the winner."""
        return [name for name, value in asdict(self.winner).items() if getattr(chosen, name) != value]

    def __str__(self) -> str:
        budget = "" if self.latency_p99_ms is None else f" (budget {self.latency_p99_ms:g} ms)"
        return f"{self.throughput:.0f} rows/s at p99 {self.p99_ms:.3g} ms{budget}, {self.created}"


def tuning_folder(bundle: Path) -> Path:
    """Where the tuning of a bundle is recorded: beside it."""
    return bundle.absolute().parent / "tuning"


def read_tuning(bundle: Path) -> Tuning | None:
    """The record beside a bundle, None where there is none.

    Raises:
        ArtifactError: what stands there cannot be read.
    """
    folder = tuning_folder(bundle)
    if not folder.exists():
        return None
    with record_explained(folder):
        manifest = read_manifest(folder, "tuning")
        found = {name: manifest[name] for name in ("latency_p99_ms", "bundle_sha256", "created")}
        speed = {name: manifest["speed"][name] for name in ("throughput", "p99_ms", "concurrency")}
        machine = {name: manifest["hardware"][name] for name in ("cpu", "cores", "gpus")}
        winner = Configuration(**manifest["winner"])
    return Tuning(folder=folder, winner=winner, hardware=machine, sha256=sha256(folder / MANIFEST), **speed, **found)


@contextlib.contextmanager
def record_explained(folder: Path) -> Iterator[None]:
    """Where the block cannot read the record in ``folder``, say so, and how to be rid of it.

    Raises:
        ArtifactError: it lacks something, or has what is unknown here.
    """
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"the record cannot be read: {error.message}", hint=_ANEW.format(folder)) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"the record cannot be read: {folder / MANIFEST}: {reason}", hint=_ANEW.format(folder)) from error
