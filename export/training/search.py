"""Hyper-parameter search with ``optuna``. Imports torch."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from transformers import TrainerCallback

from export.training.distributed import world_size
from export.training.hyperparameters import Hyperparameters
from export.training.job import TrainingJob
from export.training.train import train, with_learning_rate
from serving.errors import ArtifactError, DataError, DivergedError
from serving.reporting import logger, plural

SEARCHED = ("learning_rate", "batch_size", "warmup_ratio", "weight_decay", "layer_decay")
"""Hyper-parameters that are searched unless the user chose them."""
JOURNAL = "trials.log"


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The result of a search.

    Attributes:
        options: The best hyper-parameters.
        value: Main metric on the validation rows in their best epoch.
        trials: Number of trials, including those that were pruned.
    """

    options: Hyperparameters
    value: float
    trials: int


def search(job: TrainingJob, trials: int, *, fixed: Collection[str], journal: Path) -> SearchResult:
    """Search for the hyper-parameters with the best main metric on the validation rows. Test rows are not used.

    The first trial has the job's own hyper-parameters. An interrupted search resumes after its last complete trial; it may then
    try other values than without the interruption.

    Args:
        job: The training job.
        trials: Number of trials.
        fixed: Names of hyper-parameters that are not searched.
        journal: Folder of this job that records every trial.

    Returns:
        The best hyper-parameters.

    Raises:
        ArtifactError: Every trial diverged.
        DataError: No hyper-parameter is left to search, or there are several processes.
    """
    names = [name for name in SEARCHED if name not in fixed]
    if not names:
        raise DataError(f"nothing is left to search: {', '.join(SEARCHED)} are all given", hint="leave some out, or --search")
    if world_size() > 1:
        raise DataError("--search does not support several processes", hint="search in one process first")
    optuna.logging.set_verbosity(logging.ERROR)
    job = with_learning_rate(job)
    study = _study(journal, seed=job.options.seed)
    _enqueue_trials(study, {name: getattr(job.options, name) for name in names})

    def objective(trial: optuna.Trial) -> float:
        chosen: dict[str, Any] = {name: _suggested(trial, name, job.options) for name in names}
        options = replace(job.options, **chosen)
        logger.info(f"trial {_finished_trials(study) + 1} of {trials}: {_describe(options, names)}")
        return _run_trial(trial, replace(job, options=options, scratch=journal / f"trial-{trial.number}", report_to=()))

    study.optimize(objective, n_trials=max(trials - _finished_trials(study), 0))
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not done:
        raise ArtifactError("every trial diverged", hint="look at the rows, or give a smaller --learning-rate")
    best = study.best_trial
    options = replace(job.options, **best.params)
    count = _finished_trials(study)
    found = f"{_describe(options, names)}: {job.task.main_metric} {best.value:.4f}"
    logger.info(f"best of {count} {plural(count, 'trial')}: {found}")
    assert best.value is not None
    return SearchResult(options=options, value=best.value, trials=count)


def _enqueue_trials(study: optuna.Study, default: Mapping[str, Any]) -> None:
    """Enqueue the ``default`` options first, and in a resumed search the trials that were interrupted."""
    states = optuna.trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):  # left by a killed process
        study.tell(trial.number, state=states.FAIL)
    known = study.get_trials(states=(states.COMPLETE, states.PRUNED, states.WAITING))
    settled = [trial.system_attrs.get("fixed_params", trial.params) for trial in known]
    for params in [dict(default), *(trial.params for trial in study.get_trials(states=(states.FAIL,)))]:
        if params and params not in settled:
            study.enqueue_trial(params)
            settled.append(params)


def _finished_trials(study: optuna.Study) -> int:
    """Return the number of complete and pruned trials; interrupted ones are repeated."""
    return len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)))


def _study(journal: Path, *, seed: int) -> optuna.Study:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal.mkdir(exist_ok=True)
    study = optuna.create_study(
        study_name="search",
        storage=JournalStorage(JournalFileBackend(str(journal / JOURNAL))),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        direction="maximize",
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))  # the same seed would repeat the trials
    return study


def _suggested(trial: optuna.Trial, name: str, options: Hyperparameters) -> float | int:
    """Suggest a value around the default; on a logarithmic scale for learning rate and weight decay."""
    match name:
        case "learning_rate":
            assert options.learning_rate is not None
            return trial.suggest_float(name, options.learning_rate / 8, options.learning_rate * 8, log=True)
        case "batch_size":
            halved = options.batch_size // 2
            parted = halved and halved % options.gradient_accumulation == 0
            sizes = [*([halved] if parted else []), options.batch_size, 2 * options.batch_size]
            return int(trial.suggest_categorical(name, sizes))
        case "warmup_ratio":
            return trial.suggest_float(name, 0.0, 0.3)
        case "weight_decay":
            return trial.suggest_float(name, 1e-4, 0.3, log=True)
        case _:
            return trial.suggest_float(name, 0.7, 1.0)


def _run_trial(trial: optuna.Trial, job: TrainingJob) -> float:
    """Train once; return the main metric on the validation rows in the best epoch.

    Raises:
        optuna.TrialPruned: The trial is worse than the median at the same epoch, or it diverged.
    """
    validated = replace(job, splits={split: rows for split, rows in job.splits.items() if split != "test"})
    try:
        return float(train(validated, [_PruningCallback(trial, job.task.main_metric)]).figures["validation"][job.task.main_metric])
    except DivergedError as error:
        logger.info(f"  diverged: {error.message}")
        raise optuna.TrialPruned from error
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)  # the weights of a trial are not needed


def _describe(options: Hyperparameters, names: list[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {getattr(options, name):.3g}" for name in names)


class _PruningCallback(TrainerCallback):  # type: ignore[misc]  # the library is untyped
    """Reports each epoch's main metric to the trial, and prunes it if it is worse than the median."""

    def __init__(self, trial: optuna.Trial, main_metric: str) -> None:
        self._trial, self._main_metric = trial, main_metric

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict[str, float], **_: Any) -> None:
        figure = metrics.get(f"eval_{self._main_metric}")
        if figure is not None and state.epoch is not None:
            self._trial.report(figure, round(state.epoch))
            if self._trial.should_prune():
                logger.info("  pruned: worse than the median")
                raise optuna.TrialPruned
