"""Runs of a made-up build on a machine whose speed drifts, by laws that are known: what a comparison has to see through."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from benchmarks.comparing.reference import SPEEDS
from benchmarks.measurements import InProcess
from benchmarks.report import Report
from tests.helpers import made_up

TAILS = {"throughput": 1.0, "p50_ms": 0.9, "p90_ms": 1.2, "p95_ms": 1.4, "p99_ms": 2.0}
"""How much noisier than its throughput a way's percentiles are."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Args:
    drift: by what factor a run may be faster than another; all ways alike.
    round_drift: standard deviation of a round's speed, all ways alike.
    between_runs: of a model's level from run to run, which no round shows.
    noise: of a way in a round, in the middle; ways differ by half that and double it. Student's t of 4 degrees of freedom.
    rough: share of the rounds in which everything is two to six times as noisy.
    hit: share of the slices in which something else halves the speed.
    """

    drift: float = 1.5
    round_drift: float = 0.12
    between_runs: float = 0.03
    noise: float = 0.1
    rough: float = 0.1
    hit: float = 0.03


def small() -> Report:
    """A report of a few arrangements and loads, so that a thousand can be compared."""

    def kept(model: InProcess) -> InProcess:
        names = [name for name in model.arrangements if name in ("b1", "b32", "p1t2", "p1t1", "p2t1")]
        return replace(model, arrangements={name: model.arrangements[name] for name in names})

    whole = made_up.report()
    models = [kept(model) for model in whole.in_process if model.kind in ("pytorch", "pipeline", "onnx")]
    assert whole.served is not None
    loads = [load for load in whole.served.loads if load.concurrency in (1, 4, 16, 32) and load.length is None]
    return replace(whole, in_process=models, served=replace(whole.served, loads=loads))


def run(report: Report, machine: Machine, draw: np.random.Generator, *, slower: dict[str, float] | None = None) -> Report:
    """``report`` as another run of the same build finds it.

    Args:
        slower: model → by how much its calls take longer, 2 for twice as long.
    """
    ways = [(name, speed, ".".join(name.split(".")[:2])) for name, speed in report.speeds()]
    rounds = len(report.rounds)
    everywhere = draw.uniform(-0.5, 0.5) * np.log(machine.drift) + machine.round_drift * draw.standard_normal(rounds)
    rough = np.where(draw.random(rounds) < machine.rough, draw.uniform(2, 6, rounds), 1.0)
    settled = {model: machine.between_runs * draw.standard_normal() for model in dict.fromkeys(model for *_, model in ways)}
    own: list[dict[str, float]] = [{} for _ in range(rounds)]
    for at, (name, speed, model) in enumerate(ways):
        noise = machine.noise * np.exp(np.random.default_rng(at).uniform(-np.log(2), np.log(2))) * rough
        slice_ = 0.8 * draw.standard_t(4, rounds) / np.sqrt(2)
        level = (
            everywhere
            + settled[model]
            + np.where(draw.random(rounds) < machine.hit, np.log(0.5), 0)
            - np.log((slower or {}).get(model, 1))
        )
        for kind, sign in SPEEDS.items():
            found = level + noise * TAILS[kind] * (slice_ + 0.6 * draw.standard_t(4, rounds) / np.sqrt(2))
            for index in range(rounds):
                own[index][f"{name}.{kind}"] = asdict(speed)[kind] * float(np.exp(sign * found[index]))
    return with_rounds(report, own)


def with_rounds(report: Report, own: list[dict[str, float]]) -> Report:
    """``report`` with these rounds, and the speeds they come to."""

    def timed(one: Any, name: str) -> Any:
        figures = {kind: median(found[f"{name}.{kind}"] for found in own) for kind in SPEEDS}
        return replace(one, speed=replace(one.speed, **figures))

    models = [replace(model, arrangements={key: timed(one, f"{model.name}.{key}") for key, one in model.arrangements.items()})
              for model in report.in_process]  # fmt: skip
    served = report.served
    if served is not None:
        served = replace(served, loads=[timed(load, f"{served.name}.{load.name}") for load in served.loads])
    return replace(report, in_process=models, served=served, rounds=own)
