"""The tuning stage: trials on a real server → how the model is best served, recorded beside its bundle.

A coarse grid is tried, then the neighbourhood of the two best, then the three best and the default again by turns: a machine
that others use too changes its speed from minute to minute, and only what stands side by side can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.tuning.journal import Terms, opened
from benchmarks.tuning.outcome import Outcome
from benchmarks.tuning.schedule import Schedule
from benchmarks.tuning.search import Space
from benchmarks.tuning.testbed import make_testbed
from benchmarks.tuning.trial import Trial
from serving.artifact import (
    MANIFEST,
    fingerprint,
    inputs_record,
    is_current,
    json_ready,
    provenance,
    publish,
    read_manifest,
    sha256,
    versions,
    write_manifest,
)
from serving.bundle import Bundle, load_bundle
from serving.configuration import Configuration
from serving.errors import ServerError
from serving.install import server_versions
from serving.machine import cores, hardware, resolve_device
from serving.manifests import HardwareRecord, LoadRecord, StageInputs, TrialRecord, TuningManifest
from serving.plan import make_plan
from serving.repository import serving_code
from serving.tuning import tuning_folder

STARTS = 2
FINALISTS = 3


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What to tune for.

    Args:
        precisions: those that may be served; empty for all of the bundle.
        latency_p99_ms: what the 99th percentile of latency may be, ms; None for anything.
        concurrencies: clients of each load, rising.
        rows: texts that are asked, drawn at random from the rows of the bundle.
        duration: seconds each load is measured in each trial.
        minutes: how long all of it may take.
        fresh: make every trial anew.
    """

    bundle: Path
    precisions: tuple[str, ...]
    device: str
    latency_p99_ms: float | None
    concurrencies: tuple[int, ...]
    rows: int
    duration: float
    minutes: float
    seed: int
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a tuning came to.

    Args:
        unchanged: whether it had been found before, and nothing has changed since.
    """

    outcome: Outcome
    unchanged: bool


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is tuned, read and checked."""

    bundle: Bundle
    space: Space
    default: Configuration
    terms: Terms

    def grid(self) -> list[Configuration]:
        """What is tried first: the default, then the coarse grid."""
        return list(dict.fromkeys([self.default, *self.space.grid()]))


def prepare(options: TuneOptions) -> Subject:
    """Read the bundle; decide what is searched.

    Raises:
        ArtifactError: no usable bundle, or it does not hold a precision asked for.
    """
    bundle = load_bundle(options.bundle)
    chosen = {precision: bundle.variant(precision) for precision in options.precisions or bundle.variants}
    device = resolve_device(options.device)
    # int8 is for CPUs; where it is all there is, it may be tried
    usable = tuple(precision for precision in chosen if device == "cpu" or precision != "int8") or tuple(chosen)
    restricted = replace(bundle, variants={precision: chosen[precision] for precision in usable})
    untuned = make_plan(
        restricted,
        precision="auto" if len(usable) > 1 else usable[0],
        device=device,
        batching="auto",
        instances=None,
        threads=None,
        max_batch_size=None,
    )
    space = Space(device=device, cores=cores(), precisions=usable, most_clients=max(options.concurrencies))
    conditions = {
        "bundle": sha256(options.bundle / MANIFEST),
        "hardware": hardware(),
        "versions": versions(),
        "server": server_versions(),
        "code": serving_code(),
        **{name: getattr(options, name) for name in ("rows", "seed", "duration")},
        "concurrencies": list(options.concurrencies),
    }
    goal = {"latency_p99_ms": options.latency_p99_ms, "minutes": options.minutes, "precisions": list(usable), "device": device}
    terms = Terms(conditions=conditions, goal=goal)
    return Subject(bundle=bundle, space=space, default=untuned.configuration, terms=terms)


def tune(options: TuneOptions, say: Callable[[str], None], begin: Callable[[int, int, str], None]) -> Tuned:
    """Find the best, and record it where there is one.

    Args:
        say: told what happens, a line a trial.
        begin: told the number of the trial that begins, of about how many, and what is tried.

    Returns:
        What was found; its outcome has no winner where nothing stays within the allowed latency.

    Raises:
        TritonizeError: nothing could be measured.
    """
    subject = prepare(options)
    record = tuning_folder(options.bundle)
    inputs = inputs_record(subject.terms.to_json(), fingerprint([options.bundle / MANIFEST], root=options.bundle))
    if not options.fresh and is_current(record, TuningManifest, inputs):
        return Tuned(outcome=_outcome(subject, _trials(read_manifest(record, TuningManifest))), unchanged=True)
    testbed = make_testbed(
        subject.bundle,
        rows=options.rows,
        concurrencies=options.concurrencies,
        duration=options.duration,
        seed=options.seed,
    )
    journal_path = record.with_name("tuning.partial.jsonl")
    earlier = [] if options.fresh else _earlier(record, subject.terms)
    with opened(journal_path, subject.terms, earlier, fresh=options.fresh) as journal:
        for line in journal.told():
            say(line)
        schedule = Schedule(
            testbed=testbed,
            journal=journal,
            minutes=options.minutes,
            latency_p99_ms=options.latency_p99_ms,
            finalists=FINALISTS,
            say=say,
            begin=begin,
        )
        outcome = _outcome(subject, _run(subject, schedule))
        if outcome.winner is not None:
            with publish(record) as folder:
                write_manifest(folder, _manifest(subject, outcome, inputs))
            journal_path.unlink()
    return Tuned(outcome=outcome, unchanged=False)


def _run(subject: Subject, schedule: Schedule) -> list[Trial]:
    """All trials, in the order they were made.

    Raises:
        ServerError: every one failed.
    """
    schedule.search(subject.grid())
    for start in _outcome(subject, schedule.trials).searched[:STARTS]:
        _climb(subject, schedule, start.configuration)
    searched = _outcome(subject, schedule.trials).searched
    if not searched:
        raise ServerError(
            f"no configuration could be served: {schedule.trials[0].failure}", hint="tritonize doctor checks the set-up"
        )
    schedule.tell_left_out()
    best = [one.configuration for one in searched[:FINALISTS]]
    served = {one.configuration for one in searched}
    schedule.final(list(dict.fromkeys([*([subject.default] if subject.default in served else []), *best])))
    return schedule.trials


def _climb(subject: Subject, schedule: Schedule, start: Configuration) -> None:
    """From ``start`` to the best of its neighbours, and on, for as long as that is better."""
    here = start
    while True:
        schedule.search(subject.space.neighbours(here))
        ranks = {one.configuration: one.rank for one in _outcome(subject, schedule.trials).searched}
        known = [one for one in subject.space.neighbours(here) if one in ranks]
        best = max(known, key=lambda one: ranks[one], default=here)
        if ranks[best] <= ranks[here]:
            return
        here = best


def _outcome(subject: Subject, trials: list[Trial]) -> Outcome:
    return Outcome(trials=trials, default=subject.default, latency_p99_ms=subject.terms.goal["latency_p99_ms"])


def _manifest(subject: Subject, outcome: Outcome, inputs: StageInputs) -> TuningManifest:
    winner = outcome.winner
    assert winner is not None
    return TuningManifest(
        **provenance(inputs),
        conditions=json_ready(subject.terms.conditions),
        goal=json_ready(subject.terms.goal),
        bundle_sha256=subject.terms.conditions["bundle"],
        hardware=HardwareRecord.model_validate(subject.terms.conditions["hardware"]),
        latency_p99_ms=outcome.latency_p99_ms,
        winner=winner.configuration,
        speed=LoadRecord.model_validate(asdict(winner.shown)),
        default=outcome.default,
        ratio=outcome.ratio,
        trials=tuple(TrialRecord.model_validate(trial.to_json()) for trial in outcome.trials),
    )


def _earlier(record: Path, terms: Terms) -> list[Trial]:
    """Return the trials of a finished tuning that were made under the same conditions.

    Raises:
        ArtifactError: The record cannot be read.
    """
    if not record.exists():
        return []
    manifest = read_manifest(record, TuningManifest)
    return terms.valid({"conditions": manifest.conditions}, _trials(manifest))


def _trials(manifest: TuningManifest) -> list[Trial]:
    return [Trial.from_json(trial.model_dump()) for trial in manifest.trials]
