"""Hyper-parameter search: the training again and again on other hyper-parameters, by ``optuna``. Imports torch."""

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
from serving.reporting import logger

SEARCHED = ("learning_rate", "batch_size", "warmup_ratio", "weight_decay", "layer_decay")
"""What is searched unless its user chose it."""
JOURNAL = "trials.log"


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best hyper-parameters, and the validation rows' main metric of the best epoch with them.

    Args:
        trials: how many were made; some of them ended early, since they were worse than most.
    """

    options: Hyperparameters
    value: float
    trials: int


def search(job: TrainingJob, trials: int, *, fixed: Collection[str], journal: Path) -> SearchResult:
    """The best of ``trials`` trainings by the validation rows. The first has the options as they are; the test rows play no part.

    One that is interrupted goes on after its last whole trial, and is as good; what it tries then is not what it would have tried.

    Args:
        fixed: names of the hyper-parameters that their user chose.
        journal: folder, of this job alone, in which every trial is written down: a search that was interrupted goes on from it.

    Raises:
        ArtifactError: no trial could be trained.
        DataError: there is nothing to search, or several processes would search.
    """
    names = [name for name in SEARCHED if name not in fixed]
    if not names:
        raise DataError(f"there is nothing to search: {', '.join(SEARCHED)} are all given", hint="leave some out, or --search")
    if world_size() > 1:
        raise DataError("several processes cannot search", hint="search in one, then train in several with what was found")
    optuna.logging.set_verbosity(logging.ERROR)
    job = with_learning_rate(job)
    study = _study(journal, seed=job.options.seed)
    _begin_again(study, {name: getattr(job.options, name) for name in names})

    def value(trial: optuna.Trial) -> float:
        chosen: dict[str, Any] = {name: _suggested(trial, name, job.options) for name in names}
        options = replace(job.options, **chosen)
        logger.info(f"trial {_ended(study) + 1} of {trials}: {_told(options, names)}")
        return _value(trial, replace(job, options=options, scratch=journal / f"trial-{trial.number}", report_to=()))

    study.optimize(value, n_trials=max(trials - _ended(study), 0))
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not done:
        raise ArtifactError("every trial diverged", hint="look at the rows, or give a smaller --learning-rate")
    best = study.best_trial
    options = replace(job.options, **best.params)
    logger.info(f"best of {_ended(study)} trials: {_told(options, names)}: {job.task.main_metric} {best.value:.4f}")
    assert best.value is not None
    return SearchResult(options=options, value=best.value, trials=_ended(study))


def _begin_again(study: optuna.Study, usual: Mapping[str, Any]) -> None:
    """Try the ``usual`` options first; in a search that was interrupted, what was being tried."""
    states = optuna.trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):  # when it was killed
        study.tell(trial.number, state=states.FAIL)
    known = study.get_trials(states=(states.COMPLETE, states.PRUNED, states.WAITING))
    settled = [trial.system_attrs.get("fixed_params", trial.params) for trial in known]
    for params in [dict(usual), *(trial.params for trial in study.get_trials(states=(states.FAIL,)))]:
        if params and params not in settled:
            study.enqueue_trial(params)
            settled.append(params)


def _ended(study: optuna.Study) -> int:
    """How many trials were made; those that were interrupted are made again."""
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
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))  # with that of before it would try the same once more
    return study


def _suggested(trial: optuna.Trial, name: str, options: Hyperparameters) -> float | int:
    """Around what is usual: for the rate and the decay it is magnitudes that count."""
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


def _value(trial: optuna.Trial, job: TrainingJob) -> float:
    """The main metric of the validation rows in the best epoch.

    Raises:
        optuna.TrialPruned: it is worse than most were by then, or diverged.
    """
    validated = replace(job, splits={split: rows for split, rows in job.splits.items() if split != "test"})
    try:
        return float(train(validated, [_Report(trial, job.task.main_metric)]).figures["validation"][job.task.main_metric])
    except DivergedError as error:
        logger.info(f"  diverged: {error.message}")
        raise optuna.TrialPruned from error
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)  # the weights of a trial are of no further use


def _told(options: Hyperparameters, names: list[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {getattr(options, name):.3g}" for name in names)


class _Report(TrainerCallback):  # type: ignore[misc]  # the library is untyped
    """Tells each epoch's figure, and ends a trial that is worse than most."""

    def __init__(self, trial: optuna.Trial, main_metric: str) -> None:
        self._trial, self._main_metric = trial, main_metric

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict[str, float], **_: Any) -> None:
        figure = metrics.get(f"eval_{self._main_metric}")
        if figure is not None and state.epoch is not None:
            self._trial.report(figure, round(state.epoch))
            if self._trial.should_prune():
                logger.info("  worse than most: ended")
                raise optuna.TrialPruned
