"""Bundles: the folders of verified ONNX variants that ``tritonize export`` writes, with all that serving and measuring need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from serving.artifact import MANIFEST, code_fingerprint, manifest_bytes, parse_manifest, task_code
from serving.errors import ArtifactError, refusing
from serving.manifests import BundleManifest, GenerationVariantFigures, VariantFigures
from serving.options import PRECISIONS, Precision
from serving.runtime.tasks import load_served, served_names
from serving.runtime.tasks._encoder import EncoderTask
from serving.runtime.tasks._generation import GenerationTask
from serving.runtime.tasks.base import ServedTask
from serving.runtime.tokenization import TextEncoder
from serving.signatures import verify

REMEDY = "write it again with: tritonize export --force"
"""What to do about a bundle that is damaged."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One ONNX graph of a bundle.

    Attributes:
        precision: The precision of its weights.
        path: The ``model.onnx``. External data, if the graph has any, is beside it.
        figures: What ``export`` measured.
    """

    precision: Precision
    path: Path
    figures: VariantFigures | GenerationVariantFigures


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle folder that was read and checked.

    Attributes:
        folder: The folder.
        task: The task, bound to the bundle's settings.
        max_length: Maximum tokens of a row.
        padding: Padding value by model input.
        variants: The variants that passed their gates, by precision, fp32 first.
        manifest: The whole manifest.
    """

    folder: Path
    task: ServedTask
    max_length: int
    padding: dict[str, int]
    variants: dict[Precision, Variant]
    manifest: BundleManifest

    @property
    def tokenizer(self) -> Path:
        """The path of ``tokenizer.json``."""
        return self.folder / "tokenizer.json"

    @property
    def encoder_task(self) -> EncoderTask:
        """The task of a model that answers in one execution.

        Raises:
            TypeError: The model generates its answers.
        """
        if not isinstance(self.task, EncoderTask):
            raise TypeError(f"{self.folder}: models of {self.task.name} generate their answers")
        return self.task

    @property
    def generation_task(self) -> GenerationTask:
        """The task of a model that generates.

        Raises:
            TypeError: The model answers in one execution.
        """
        if not isinstance(self.task, GenerationTask):
            raise TypeError(f"{self.folder}: models of {self.task.name} answer in one execution")
        return self.task

    def variant(self, precision: str) -> Variant:
        """Return the variant of that precision.

        Raises:
            ArtifactError: It was not exported, or it failed its gates; the message says which and by how much.
        """
        if precision in self.variants:
            return self.variants[precision]
        record = next((record for name, record in self.manifest.precisions.items() if name == precision), None)
        if record is None:
            more = (
                f"add one with: tritonize export --precision {precision}"
                if precision in PRECISIONS
                else "bf16 is for --engine vllm"
            )
            raise ArtifactError(f"{self.folder} holds no {precision} variant", hint=f"it has {', '.join(self.variants)}; {more}")
        raise ArtifactError(
            f"the {precision} variant is not in the bundle, it failed its gates: {record.failures}",
            hint=f"use one of {', '.join(self.variants)}",
        )

    def with_max_length(self, max_length: int | None) -> Self:
        """Return the bundle with another maximum number of tokens of a row. None: its own.

        Raises:
            ArtifactError: The model has positions for fewer tokens.
        """
        positions = self.manifest.max_positions
        if max_length is not None and positions is not None and max_length > positions:
            raise ArtifactError(
                f"the model takes at most {positions} tokens, not {max_length}", hint=f"give --max-length {positions} or less"
            )
        return self if max_length is None else replace(self, max_length=max_length)

    def encoder(self, names: list[str]) -> TextEncoder:
        """Return the tokenizer as it runs inside Triton.

        Args:
            names: The model inputs that it gives.

        Raises:
            ArtifactError: The file is damaged.
        """
        with refusing(f"{self.tokenizer} is damaged", hint=REMEDY):
            return TextEncoder(
                str(self.tokenizer),
                max_length=self.max_length,
                names=names,
                padding=self.padding,
                split_special_tokens=self.manifest.split_special_tokens,
            )


def file_inside(folder: Path, name: str) -> Path:
    """Return the path of a file in ``folder`` whose name was read from an untrusted file.

    Raises:
        ArtifactError: The name leads out of the folder.
    """
    path = folder / name
    if not name or not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{folder} refers to {name!r}, which is not a file inside it", hint="do not use it unless you know who made it"
        )
    return path


def load_bundle(folder: Path, *, verify_key: Path | None = None) -> Bundle:
    """Read and check a bundle.

    Args:
        folder: The bundle.
        verify_key: The public key that its signature is verified with; None: it need not be signed.

    Raises:
        ArtifactError: The folder is not a bundle, is not signed with the private key, lacks a file that its manifest lists, or
            refers to a file outside it.
        SetupError: The key cannot be used, or model-signing is not installed.
    """
    text = manifest_bytes(folder, BundleManifest)
    if verify_key is not None:
        verify(folder, text, verify_key)
    manifest = parse_manifest(folder, BundleManifest, text)
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder} lacks {', '.join(missing)}", hint=REMEDY)
    variants: dict[Precision, Variant] = {
        precision: Variant(precision=precision, path=file_inside(folder, record.file), figures=record.figures)
        for precision, record in manifest.precisions.items()
        if record.verdict == "passed"
    }
    return Bundle(
        folder=folder,
        task=_served_task(folder, manifest),
        max_length=manifest.max_length,
        padding=manifest.padding,
        variants=variants,
        manifest=manifest,
    )


def _served_task(folder: Path, manifest: BundleManifest) -> ServedTask:
    try:
        return load_served(manifest.task, manifest.settings)
    except (KeyError, ValueError) as error:
        reason = f"no task is called {error}" if isinstance(error, KeyError) else error
        raise ArtifactError(f"{folder / MANIFEST}: {reason}", hint=REMEDY) from error


def served_code(task: str) -> dict[str, str]:
    """Return the SHA-256 of the served half of a task, by path: what the answers are made with."""
    return code_fingerprint(task_code(["serving/runtime/tasks"], task, served_names()))
