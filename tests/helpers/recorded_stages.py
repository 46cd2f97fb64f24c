"""Stages that record their options and return a made-up manifest in place of computing anything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export import bundle, export_subject, finetuning
from export.export_options import ExportOptions
from export.finetune_options import FinetuneOptions
from serving.manifests import BundleManifest, CheckpointManifest
from tests.helpers.manifests import bundle_manifest, checkpoint_manifest, variant_figures


def record_finetune(monkeypatch: pytest.MonkeyPatch) -> list[FinetuneOptions]:
    """Replace the fine-tuning stage, and return the list of the options that it is called with."""
    seen: list[FinetuneOptions] = []

    def record(options: FinetuneOptions) -> CheckpointManifest:
        seen.append(options)
        return checkpoint_manifest()

    monkeypatch.setattr(finetuning, "finetune", record)
    return seen


def record_export(monkeypatch: pytest.MonkeyPatch) -> list[ExportOptions]:
    """Replace the export stage and the search for its name and task, and return the list of the options that it is called with."""
    seen: list[ExportOptions] = []

    def record(options: ExportOptions) -> BundleManifest:
        seen.append(options)
        variant = {"verdict": "passed", "gates": (), "figures": variant_figures()}
        variants = {precision: variant | {"file": f"{precision}/model.onnx"} for precision in options.precisions}
        return bundle_manifest(precisions=variants)

    def described(options: ExportOptions, *_: object) -> ExportOptions:
        return replace(options, name=options.name or "m", task=options.task or "text-classification")

    monkeypatch.setattr(bundle, "export", record)
    monkeypatch.setattr(export_subject, "described_export", described)
    return seen
