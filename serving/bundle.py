"""What ``export`` hands over: one folder of verified ONNX variants, and everything needed to serve and measure them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.artifact import read_manifest
from serving.errors import ArtifactError
from serving.runtime.tasks import load_task
from serving.runtime.tasks.base import Task
from serving.runtime.tokenization import TextEncoder


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ONNX file of a bundle.

    Args:
        precision: ``fp32``, ``fp16`` or ``int8``.
        path: the ``model.onnx``; external data, where it has any, lies beside it.
        figures: as measured by ``export``: ``latency_ms`` (batch 1, one thread, median), ``throughput`` (rows/s by batch
            size, one thread), ``speed_device`` (``cpu`` or ``gpu``: where those two were measured), ``label_agreement``,
            ``metric_drop`` …
    """

    precision: str
    path: Path
    figures: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle folder, read and checked.

    Args:
        variants: those that passed their gates, by precision, fp32 first.
        padding: pad value by model input name.
        manifest: the whole ``manifest.json``.
    """

    folder: Path
    task: Task
    max_length: int
    padding: dict[str, int]
    variants: dict[str, Variant]
    manifest: dict[str, Any]

    @property
    def tokenizer(self) -> Path:
        """The ``tokenizer.json``."""
        return self.folder / "tokenizer.json"

    def variant(self, precision: str) -> Variant:
        """The variant of that precision.

        Raises:
            ArtifactError: it was not exported, or failed its gates; the message says which and by how much.
        """
        if precision in self.variants:
            return self.variants[precision]
        record = self.manifest["precisions"].get(precision)
        if record is None:
            raise ArtifactError(
                f"{self.folder} holds no {precision} variant",
                hint=f"it has {', '.join(self.variants)}; add one with: tritonize export --precision {precision}",
            )
        failed = "; ".join(gate["message"] for gate in record["gates"] if not gate["passed"])
        raise ArtifactError(
            f"the {precision} variant is not in the bundle, it failed its gates: {failed}",
            hint=f"use one of {', '.join(self.variants)}",
        )

    def encoder(self, names: list[str]) -> TextEncoder:
        """The tokenizer as it will run inside Triton, giving the model inputs ``names``."""
        return TextEncoder(str(self.tokenizer), max_length=self.max_length, names=names, padding=self.padding)


def file_inside(folder: Path, name: str) -> Path:
    """The file called ``name`` in ``folder``, where ``name`` was read from a file that anybody may have written.

    Raises:
        ArtifactError: it leads out of the folder.
    """
    path = folder / name
    if not name or not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{folder} refers to {name!r}, which is no file inside it", hint="do not use it unless you know who made it"
        )
    return path


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle.

    Raises:
        ArtifactError: the folder is no bundle, lacks a file its manifest lists, or refers to one outside it.
    """
    manifest = read_manifest(folder, "bundle")
    missing = [name for name in manifest["files"] if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder} lacks {', '.join(missing)}", hint="write it anew with: tritonize export --force")
    variants = {
        precision: Variant(precision=precision, path=file_inside(folder, record["file"]), figures=record["figures"])
        for precision, record in manifest["precisions"].items()
        if record["verdict"] == "passed"
    }
    return Bundle(
        folder=folder,
        task=load_task(manifest["task"], manifest["settings"]),
        max_length=manifest["max_length"],
        padding=manifest["padding"],
        variants=variants,
        manifest=manifest,
    )
