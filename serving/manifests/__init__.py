"""Manifests: the typed content of the ``manifest.json`` in every artifact.

There is one model for each kind of artifact. All models are frozen, refuse unknown fields, and hold no NaN or infinity.
:func:`serving.artifact.write_manifest` and :func:`serving.artifact.read_manifest` write and read them.
"""

from serving.manifests.bundle_manifest import (
    FIGURE_KINDS,
    BundleManifest,
    GenerationVariantFigures,
    OriginalCheckpoint,
    OriginalFigures,
    ReferenceCheck,
    SpeedFigures,
    Throughput,
    VariantFigures,
    VariantGate,
    VariantRecord,
)
from serving.manifests.checkpoint_manifest import (
    AdapterRecord,
    BaselineFigures,
    CheckpointManifest,
    DistillationRecord,
    SearchFigures,
    TrainingData,
    TrainingFigures,
    UnknownTokens,
)
from serving.manifests.manifest import SCHEMA_VERSION, Manifest, Record, StageInputs
from serving.manifests.repository_manifest import (
    BundleProvenance,
    ExpectedAnswer,
    ExpectedTensor,
    ProbeBody,
    ProbeInput,
    RepositoryManifest,
)
from serving.manifests.tuning_manifest import HardwareRecord, LoadRecord, TrialRecord, TuningManifest

__all__ = [
    "FIGURE_KINDS",
    "SCHEMA_VERSION",
    "AdapterRecord",
    "BaselineFigures",
    "BundleManifest",
    "BundleProvenance",
    "CheckpointManifest",
    "DistillationRecord",
    "ExpectedAnswer",
    "ExpectedTensor",
    "GenerationVariantFigures",
    "HardwareRecord",
    "LoadRecord",
    "Manifest",
    "OriginalCheckpoint",
    "OriginalFigures",
    "ProbeBody",
    "ProbeInput",
    "Record",
    "ReferenceCheck",
    "RepositoryManifest",
    "SearchFigures",
    "SpeedFigures",
    "StageInputs",
    "Throughput",
    "TrainingData",
    "TrainingFigures",
    "TrialRecord",
    "TuningManifest",
    "UnknownTokens",
    "VariantFigures",
    "VariantGate",
    "VariantRecord",
]
