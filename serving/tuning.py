"""The result of ``tritonize tune`` for a bundle, which packaging reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from serving.artifact import MANIFEST, read_manifest, sha256
from serving.configuration import Configuration
from serving.machine import hardware
from serving.manifests import HardwareRecord, TuningManifest
from serving.reporting import plural


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A finished tuning.

    Attributes:
        folder: The folder of its record.
        manifest: The record.
        sha256: SHA-256 of the record.
    """

    folder: Path
    manifest: TuningManifest
    sha256: str

    @property
    def winner(self) -> Configuration:
        """The best configuration."""
        return self.manifest.winner

    def objection(self, bundle: Path, *, precision: str, device: str) -> str | None:
        """Return why the winner must not be packaged, or None if it may be.

        Args:
            bundle: Folder of the bundle that is packaged.
            precision: The precision asked for, or ``auto``.
            device: ``cpu`` or ``gpu``.
        """
        here, there = HardwareRecord.model_validate(hardware()), self.manifest.hardware
        if precision not in ("auto", self.winner.precision):
            return f"the best is {self.winner.precision}, and {precision} was asked for"
        if self.manifest.bundle_sha256 != sha256(bundle / MANIFEST):
            return f"{self.folder} is of another export"
        if device != self.winner.device:
            return f"{self.folder} was measured on a {self.winner.device.upper()}"
        if here.cores != there.cores:
            return f"{self.folder} was measured on {there.cores} {plural(there.cores, 'core')}, here are {here.cores}"
        if device == "gpu" and here.gpus != there.gpus:
            return f"{self.folder} was measured on {', '.join(there.gpus)}, here is {', '.join(here.gpus) or 'none'}"
        return None

    def differences(self, chosen: Configuration) -> list[str]:
        """Return the names of the choices in which ``chosen`` differs from the winner."""
        return [name for name, value in asdict(self.winner).items() if getattr(chosen, name) != value]

    def __str__(self) -> str:
        """Return the winner's speed, the latency that was allowed, and the date."""
        speed, allowed = self.manifest.speed, self.manifest.latency_p99_ms
        budget = "" if allowed is None else f" (budget {allowed:g} ms)"
        return f"{speed.rate} at p99 {speed.p99_ms:.3g} ms{budget}, {self.manifest.created.isoformat()}"


def tuning_folder(bundle: Path) -> Path:
    """Return the folder of a bundle's tuning, which is beside it."""
    return bundle.absolute().parent / "tuning"


def read_tuning(bundle: Path) -> Tuning | None:
    """Read the tuning of a bundle.

    Returns:
        None if there is none.

    Raises:
        ArtifactError: The record cannot be read.
    """
    folder = tuning_folder(bundle)
    if not folder.exists():
        return None
    return Tuning(folder=folder, manifest=read_manifest(folder, TuningManifest), sha256=sha256(folder / MANIFEST))
