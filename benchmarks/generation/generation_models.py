"""What was measured in process, collected: one entry for each model, named after what ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generation.conversions import CTRANSLATE2
from benchmarks.generation.generation_inputs import GenerationInputs
from benchmarks.generation.generation_quality import AnswerComparison, Answers
from benchmarks.generation.generation_runs import CONTINUOUS
from benchmarks.generation.generation_ways import GeneratingProcess, samples_of, to_arrangement
from benchmarks.in_process import ORIGINAL, bundle_precision
from benchmarks.jobs import WorkerFacts
from benchmarks.measurements import InProcess
from benchmarks.processes import MIB
from benchmarks.token_speed import TokenTimes
from export import graph
from export.checkpoint import weights_size


@dataclass(frozen=True, kw_only=True)
class GeneratedModels:
    """What was measured in process.

    Attributes:
        rounds: The figures that each round has of its own.
        samples: Times of the tokens, by the names of :data:`benchmarks.samples.Samples`.
        original: The original's answers to the labelled prompts.
    """

    models: list[InProcess]
    rounds: list[dict[str, float]]
    samples: dict[str, TokenTimes]
    original: Answers


def collected(inputs: GenerationInputs, measured: Sequence[GeneratingProcess], comparison: AnswerComparison) -> GeneratedModels:
    """End the processes and collect what was measured.

    Raises:
        SetupError: A worker failed.
        ArtifactError: A file that ran is not the one its bundle describes.
    """
    ended = [(one, one.workers.end()[0]) for one in measured]
    named = {_name(inputs, one, facts): (one, facts) for one, facts in ended}
    original: Answers = named[ORIGINAL][1].answers
    rounds: list[dict[str, float]] = [{} for _ in range(inputs.options.rounds)]
    samples: dict[str, TokenTimes] = {}
    models = []
    for name, (one, facts) in named.items():
        model = _model(inputs, name, one, facts, original, comparison)
        models.append(model)
        for way in one.ways:
            samples |= samples_of(name, way)
            for found, own in zip(rounds, way.rounds(), strict=True):
                found.update({f"{name}.{way.name}.{key}": value for key, value in own.items()})
        for found in rounds:
            found.update(_short_names(model, found))
    return GeneratedModels(models=models, rounds=rounds, samples=samples, original=original)


def _short_names(model: InProcess, found: dict[str, float]) -> dict[str, float]:
    """A round's figures of a whole model, as in :meth:`benchmarks.report.Report.figures`: of its best and quickest arrangement."""
    short: dict[str, float] = {}
    for name, kinds in ((model.best.name, ("throughput", "tokens_per")), (model.quickest.name, ("p", "ttft", "itl"))):
        stem = f"{model.name}.{name}."
        own = {key.removeprefix(stem): value for key, value in found.items() if key.startswith(stem)}
        short |= {f"{model.name}.{key}": value for key, value in own.items() if key.startswith(kinds)}
    return short


def _name(inputs: GenerationInputs, one: GeneratingProcess, facts: WorkerFacts) -> str:
    """Name a model by what ran: the tensors, the library's report, or the bundle's checksum of the file tell the precision."""
    return f"{one.run.job.backend}.{facts.precision or bundle_precision(inputs.bundle, facts.sha256)}"


def _model(
    inputs: GenerationInputs,
    name: str,
    one: GeneratingProcess,
    facts: WorkerFacts,
    original: Answers,
    comparison: AnswerComparison,
) -> InProcess:
    kind, _, precision = name.partition(".")
    arrangements = [to_arrangement(way, facts) for way in one.ways]
    operators = inputs.bundle.variant(precision).figures.operators if kind == CONTINUOUS else None
    return InProcess(
        kind=kind,
        precision=precision,
        device="cpu",
        file=facts.file.name,
        sha256=facts.sha256,
        size_mib=_size(kind, facts.file) / MIB,
        fused_operators=operators,
        arrangements={arrangement.name: arrangement for arrangement in arrangements},
        quality=comparison.quality(name, facts.answers, original),
    )


def _size(kind: str, file: Path) -> int:
    if kind == CTRANSLATE2:
        return file.stat().st_size
    return graphs_size(file) if file.suffix == ".onnx" else weights_size(file.parent)


def graphs_size(file: Path) -> int:
    """Return the bytes of a graph that generates, and of the encoder that belongs to it."""
    encoders = [file.with_name(name) for name in ENCODERS.get(file.name, ())]
    return sum(graph.size(one) for one in (file, *encoders))


ENCODERS = {"decoder.onnx": ("encoder.onnx",), "decoder_model_merged.onnx": ("encoder_model.onnx",)}
"""The encoders of decoders, by their names."""
