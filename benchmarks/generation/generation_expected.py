"""Figures that a benchmark of a model that generates will measure: a gate on other figures is refused at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from benchmarks.expected import Expected, zero
from benchmarks.generation.generation_inputs import GenerationInputs
from benchmarks.generation.generation_runs import CONTINUOUS, GenerationRun, planned_streams
from benchmarks.in_process import ORIGINAL
from benchmarks.measurements import Arrangement, Estimate, InProcess, Load, Quality, Served
from benchmarks.report import figures_of
from benchmarks.speed import Speed
from benchmarks.token_speed import TokenSpeed
from export import metric
from export.tasks._rewriting import RewritingTask

WAITS = ("ttft_p50_ms", "ttft_p99_ms", "itl_mean_ms", "itl_p50_ms", "itl_p99_ms")


def expected_generation(inputs: GenerationInputs, runs: Sequence[GenerationRun], *, served: str | None) -> Expected:
    """Name the figures that will be measured.

    Args:
        inputs: What is measured.
        runs: The models in process.
        served: Precision of what is served; None: the server is not measured.
    """
    of_server = zero(TokenSpeed) if inputs.bundle.generation_task.streams else zero(TokenSpeed, **dict.fromkeys(WAITS))
    in_process = replace(of_server, client_cpu_ms_per_token=None)
    models = []
    for run in runs:
        planned = [(run.arrangement(count, length), length) for count, length in run.calls]
        speeds = {"speed": zero(Speed), "tokens": in_process}
        made = {name: zero(Arrangement, name=name, length=length, **speeds) for name, length in planned}
        kind, precision = run.job.backend, run.precision
        models.append(zero(InProcess, kind=kind, precision=precision, arrangements=made, quality=_quality(inputs, run.model)))
    speeds = {"speed": zero(Speed), "tokens": of_server}
    loads = [zero(Load, **asdict(mode), **speeds, steps={}, split=None) for mode in planned_streams(inputs)]
    server = None
    if served is not None:
        server = zero(Served, precision=served, loads=loads, quality=_quality(inputs, f"{CONTINUOUS}.{served}"))
    names = [model.name for model in models] + ([] if server is None else [f"{server.name}.{load.name}" for load in loads])
    return Expected(ways=names, figures=frozenset(figures_of(models, server)))


def _quality(inputs: GenerationInputs, model: str) -> Quality:
    task = inputs.subject.task
    described = model.startswith(f"{CONTINUOUS}.")
    known = {} if described else {"perplexity_increase": None, "next_token_agreement": None}
    if isinstance(task, RewritingTask):
        known |= {"perplexity_increase": None, "perplexity": None}
        metrics = dict.fromkeys(metric.compute(task.metric, ["one"], [["one"]]), 0.0)
        return zero(Quality, metrics=metrics, drop=None if model == ORIGINAL else zero(Estimate), **known)
    if not described and model != ORIGINAL:
        known["perplexity"] = None
    return zero(Quality, metrics={}, drop=None, **known)
