"""Manifests of every kind with made-up figures."""

from __future__ import annotations

from typing import Any

from serving.artifact import inputs_record, provenance
from serving.bundle import served_code
from serving.configuration import Configuration
from serving.machine import hardware
from serving.manifests import (
    BundleManifest,
    CheckpointManifest,
    RepositoryManifest,
    StageInputs,
    TuningManifest,
    VariantFigures,
)

NOTHING = inputs_record({})
CONFIGURATION = Configuration(
    precision="fp32", device="cpu", batching="ragged", instances=3, threads=1, max_batch_size=16, queue_delay_us=500
)
SPEED = {"latency_ms": 3.0, "throughput": {"1": 9.0, "16": 1.0}, "speed_device": "cpu"}
LOAD = {"concurrency": 16, "throughput": 412.3, "p50_ms": 20.0, "p99_ms": 38.12, "executed_batch": 2.0}


def variant_figures(**changes: Any) -> VariantFigures:
    """Figures of a variant that is as good as the original."""
    figures = SPEED | {
        "accuracy": 0.9,
        "metric_drop": 0.0,
        "label_agreement": 1.0,
        "row_agreement": None,
        "ties": 0,
        "p99_score_change": 1e-6,
        "max_score_change": 1e-5,
        "max_logit_difference": 1e-5,
        "mean_logit_difference": 1e-6,
        "fusion": "onnxruntime",
        "fp32_nodes": (),
        "bytes": 1000,
        "operators": {},
    }
    return VariantFigures.model_validate(figures | changes)


def checkpoint_manifest(inputs: StageInputs = NOTHING, **changes: Any) -> CheckpointManifest:
    """The manifest of a fine-tuned classifier without test rows."""
    content = {
        **provenance(inputs),
        "name": "tiny",
        "task": "text-classification",
        "labels": ("negative", "positive"),
        "settings": {},
        "chosen_settings": {},
        "fitted_settings": {},
        "pair": False,
        "main_metric": "accuracy",
        "evaluation_split": "validation",
        "base_checkpoint": "base",
        "data": {
            "train": "train.tsv",
            "validation": "dev.tsv",
            "test": None,
            "text_columns": ("text",),
            "label_column": "label",
            "label_shares": {"negative": 0.5, "positive": 0.5},
            "shared_rows": {},
            "leaks_kept": False,
            "contradicting_texts": 0,
        },
        "training": {"epochs": 3},
        "adapter": None,
        "distillation": None,
        "figures": {
            "parameters": 10,
            "trained_parameters": 10,
            "best_epoch": 1,
            "epochs": 3,
            "steps": 90,
            "peak_rss_mib": 100,
            "validation": {"loss": 0.1, "accuracy": 0.9},
            "interval": (0.8, 0.95),
            "rows": {"train": 240, "validation": 60},
            "seconds": 1.5,
        },
        "max_length": 32,
    }
    return CheckpointManifest.model_validate(content | changes)


def bundle_manifest(inputs: StageInputs = NOTHING, **changes: Any) -> BundleManifest:
    """The manifest of a bundle with an fp32 variant."""
    content = {
        **provenance(inputs),
        "name": "tiny",
        "task": "text-classification",
        "labels": ("negative", "positive"),
        "settings": {},
        "evaluation_settings": {},
        "verified_with": served_code("text-classification"),
        "main_metric": "accuracy",
        "device": "cpu",
        "warnings": (),
        "original": SPEED | {"accuracy": 0.9, "rows": 100, "bytes": 1000, "checkpoint": {"name": "base", "sha256": "0"}},
        "precisions": {"fp32": {"file": "fp32/model.onnx", "verdict": "passed", "gates": (), "figures": variant_figures()}},
        "max_length": 8,
        "max_positions": 16,
        "reference": {"library": "transformers.pipeline", "texts": 36, "max_difference": 1e-6},
        "model_inputs": ("input_ids", "attention_mask"),
        "padding": {"input_ids": 0},
        "split_special_tokens": False,
        "output_head": None,
        "opset": 18,
    }
    return BundleManifest.model_validate(content | changes)


def repository_manifest(inputs: StageInputs = NOTHING, **changes: Any) -> RepositoryManifest:
    """The manifest of a packaged classifier."""
    content = {
        **provenance(inputs),
        **vars(CONFIGURATION),
        "name": "tiny",
        "generation": "20260101000000",
        "task": "text-classification",
        "settings": {},
        "max_length": 8,
        "probe": {"inputs": ({"name": "TEXT", "datatype": "BYTES", "shape": (1, 1), "data": ("good",)},)},
        "answers": (),
        "reasons": {},
        "bundle": {"manifest": NOTHING, "figures": variant_figures()},
    }
    return RepositoryManifest.model_validate(content | changes)


def tuning_manifest(inputs: StageInputs = NOTHING, **changes: Any) -> TuningManifest:
    """The manifest of a tuning on this machine without trials."""
    content = {
        **provenance(inputs),
        "conditions": {},
        "goal": {},
        "bundle_sha256": "0123456789abcdef",
        "hardware": hardware(),
        "latency_p99_ms": 50.0,
        "winner": CONFIGURATION,
        "speed": LOAD,
        "default": CONFIGURATION,
        "ratio": None,
        "trials": (),
    }
    return TuningManifest.model_validate(content | changes)
