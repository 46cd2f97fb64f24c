"""The tuning stage: trials on a real server → the best configuration, recorded beside the bundle.

Optuna searches (:mod:`benchmarks.tuning.tuning_study`). The best three configurations and the default are then measured again in
interleaved rounds: the speed of a shared machine drifts, and only measurements side by side are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.tuning.encoder_testbed import make_encoder_testbed
from benchmarks.tuning.generation_space import make_generation_space
from benchmarks.tuning.generation_testbed import make_generation_testbed
from benchmarks.tuning.outcome import TuningOutcome
from benchmarks.tuning.packaged_sizes import packaged_sizes
from benchmarks.tuning.schedule import FINALISTS, Schedule
from benchmarks.tuning.space import Space
from benchmarks.tuning.testbed import Testbed
from benchmarks.tuning.tune_options import TuneOptions
from benchmarks.tuning.tuning_study import SearchSpace, SearchTerms, opened
from serving import artifact
from serving.bundle import Bundle, load_bundle
from serving.configuration import Configuration
from serving.errors import ServerError
from serving.generation_plan import make_generation_plan
from serving.install import find_install, server_versions
from serving.machine import cores, hardware, resolve_device
from serving.manifests import HardwareRecord, StageInputs, TrialRecord, TuningManifest
from serving.options import CPU_PRECISIONS, ComputeDevice, PackageOptions, Precision
from serving.plan import make_plan
from serving.reporting import logger
from serving.repository import serving_code
from serving.runtime.tasks._generation import GenerationTask
from serving.tuning import tuning_folder

STORAGE = "tuning.partial.sqlite3"
"""Beside the record: the study, for as long as there is no winner."""
Found = tuple[Configuration, SearchSpace, Sequence[Configuration]]
"""The untuned configuration, all that may be tried, and what is tried first."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The result of :func:`tune`.

    Attributes:
        unchanged: Whether it was recorded earlier and nothing has changed since.
    """

    outcome: TuningOutcome
    unchanged: bool


@dataclass(frozen=True, kw_only=True)
class TuningSubject:
    """A bundle to tune, read and checked.

    Attributes:
        default: How it is served untuned.
        goal: Options that decide the outcome but not what a trial measures, JSON-ready.
    """

    bundle: Bundle
    default: Configuration
    search: SearchTerms
    goal: dict[str, Any]

    def terms(self) -> dict[str, Any]:
        """Return everything that the outcome depends on, JSON-ready."""
        return {"conditions": dict(self.search.conditions), "goal": self.goal}

    def outcome(self, trials: Sequence[TrialRecord]) -> TuningOutcome:
        """Return the outcome of these trials."""
        return TuningOutcome(trials=tuple(trials), default=self.default, latency_p99_ms=self.search.latency_p99_ms)


def prepare(options: TuneOptions) -> TuningSubject:
    """Read the bundle and decide what is searched.

    Raises:
        ArtifactError: There is no usable bundle, or it lacks a precision asked for.
    """
    bundle = load_bundle(options.bundle_folder).with_max_length(packaged_sizes(options)[0])
    chosen = {precision: bundle.variant(precision) for precision in options.precisions or bundle.variants}
    generates = isinstance(bundle.task, GenerationTask)
    device: ComputeDevice = "cpu" if generates else resolve_device(options.device)
    # int8 is for CPUs; on a GPU it is only tried if there is nothing else.
    usable = tuple(precision for precision in chosen if device == "cpu" or precision not in CPU_PRECISIONS) or tuple(chosen)
    restricted = replace(bundle, variants={precision: chosen[precision] for precision in usable})
    find = _generation_space if generates else _encoder_space
    default, space, grid = find(restricted, usable, device, options)
    sizes = {"max_length": bundle.max_length} | (
        {"new_tokens": options.new_tokens, "capacity": default.capacity} if generates else {}
    )
    search = SearchTerms(
        space=space,
        first=list(dict.fromkeys([default, *grid])),
        conditions=_conditions(options) | sizes,
        latency_p99_ms=options.latency_p99_ms,
        seed=options.seed,
    )
    goal = {"latency_p99_ms": options.latency_p99_ms, "minutes": options.minutes, "precisions": list(usable), "device": device}
    return TuningSubject(bundle=bundle, default=default, search=search, goal=goal)


def _encoder_space(bundle: Bundle, usable: tuple[Precision, ...], device: ComputeDevice, options: TuneOptions) -> Found:
    untuned = make_plan(
        bundle,
        precision="auto" if len(usable) > 1 else usable[0],
        device=device,
        batching="auto",
        instances=None,
        threads=None,
        max_batch_size=None,
    )
    space = Space(device=device, cores=cores(), precisions=usable, most_clients=max(options.loads))
    return untuned.configuration, space, space.grid()


def _generation_space(bundle: Bundle, usable: tuple[Precision, ...], _device: ComputeDevice, options: TuneOptions) -> Found:
    capacity = packaged_sizes(options)[1]
    untuned = make_generation_plan(bundle, PackageOptions(name=options.name, device=options.device, capacity=capacity))
    if (reason := untuned.reasons.get("device")) is not None:
        logger.info(f"device {reason}")
    clients = max(options.loads)
    space = make_generation_space(bundle, untuned, capacity=capacity, precisions=usable, cores=cores(), most_clients=clients)
    return untuned.configuration, space, space.grid()


def make_testbed(bundle: Bundle, options: TuneOptions) -> Testbed:
    """Return what measures configurations of a bundle, on its evaluation rows.

    Raises:
        DataError: The bundle holds no evaluation rows that can be used.
        SetupError: There is no Triton or no load generator on this machine.
    """
    find_install()
    make = make_generation_testbed if isinstance(bundle.task, GenerationTask) else make_encoder_testbed
    return make(bundle, options)


def tune(options: TuneOptions, begin: Callable[[int, int, str], None]) -> Tuned:
    """Find the best configuration and record it; ``begin`` is called for each trial as in :class:`Schedule`.

    Returns:
        The result. Its outcome has no winner, and nothing is recorded, if no configuration is within the latency budget.

    Raises:
        TritonizeError: Nothing could be measured.
    """
    subject = prepare(options)
    record = tuning_folder(options.bundle_folder)
    bundle = options.bundle_folder
    inputs = artifact.inputs_record(subject.terms(), artifact.fingerprint([bundle / artifact.MANIFEST], root=bundle))
    if not options.fresh and artifact.is_current(record, TuningManifest, inputs):
        return Tuned(outcome=subject.outcome(artifact.read_manifest(record, TuningManifest).trials), unchanged=True)
    testbed = make_testbed(subject.bundle, options)
    storage = record.with_name(STORAGE)
    earlier = () if options.fresh else _earlier(record, subject)
    with opened(storage, subject.search, earlier, fresh=options.fresh) as study:
        if study.trials:
            logger.info(f"trials of an earlier run that are used again: {len(study.trials)}")
        schedule = Schedule(testbed=testbed, study=study, options=options, begin=begin)
        outcome = _run(subject, schedule)
        if outcome.winner is not None:
            with artifact.publish(record) as folder:
                artifact.write_manifest(folder, _manifest(subject, outcome, inputs))
            storage.unlink()
    return Tuned(outcome=outcome, unchanged=False)


def _run(subject: TuningSubject, schedule: Schedule) -> TuningOutcome:
    """Make all trials."""
    schedule.search()
    searched = subject.outcome(schedule.trials).searched
    if not searched:
        raise ServerError(
            f"no configuration could be served: {schedule.trials[0].failure}", hint="tritonize doctor checks the set-up"
        )
    served = [one.configuration for one in searched]
    default = [subject.default] if subject.default in served else []
    schedule.final(list(dict.fromkeys([*default, *served[:FINALISTS]])))
    return subject.outcome(schedule.trials)


def _conditions(options: TuneOptions) -> dict[str, Any]:
    """Return everything that a trial's figures depend on besides its configuration, JSON-ready."""
    return {
        "bundle": artifact.sha256(options.bundle_folder / artifact.MANIFEST),
        "hardware": hardware(),
        "versions": artifact.versions(),
        "server": server_versions(),
        "code": serving_code(),
        "rows": options.rows,
        "seed": options.seed,
        "duration": options.duration,
        "concurrencies": list(options.loads),
    }


def _manifest(subject: TuningSubject, outcome: TuningOutcome, inputs: StageInputs) -> TuningManifest:
    winner = outcome.winner
    assert winner is not None
    return TuningManifest(
        **artifact.provenance(inputs),
        conditions=artifact.json_ready(subject.search.conditions),
        goal=artifact.json_ready(subject.goal),
        bundle_sha256=str(subject.search.conditions["bundle"]),
        hardware=HardwareRecord.model_validate(subject.search.conditions["hardware"]),
        latency_p99_ms=outcome.latency_p99_ms,
        winner=winner.configuration,
        speed=winner.shown,
        default=outcome.default,
        ratio=outcome.ratio,
        trials=tuple(outcome.trials),
    )


def _earlier(record: Path, subject: TuningSubject) -> Sequence[TrialRecord]:
    """Return the trials of a finished tuning under the same conditions."""
    if not record.exists():
        return ()
    manifest = artifact.read_manifest(record, TuningManifest)
    return manifest.trials if manifest.conditions == subject.search.conditions else ()
