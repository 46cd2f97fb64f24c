"""Measurement noise of figures between two runs, estimated from their variation between rounds.

Levels are logarithms of figures, higher is better, ``[figures, rounds]`` of one run each. The mean level of a figure in one run is
compared with its mean in the other.

* **Weights of rounds.** A round in which all figures vary strongly counts less: its weight is the inverse square of the typical
  distance of the figures from their medians, relative to that of the median round, at most 1.
* **Noise of a figure.** A few rounds give a poor estimate: it is averaged with the median of its kind (throughputs, 99th
  percentiles …), which counts as :data:`PRIOR` additional rounds.
* **Variation between runs.** A process may settle at another level in each run (memory layout, cores), which no round shows. It is
  assumed to be :data:`BETWEEN_RUNS`; only repeated runs could measure it.
* **Limit of chance.** A quantile of Student's t with Satterthwaite's degrees of freedom, so that over all figures and
  :data:`TRIES` comparisons hardly any exceeds it by chance (Šidák correction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

BETWEEN_RUNS = 0.03
"""Standard deviation of a model's level between runs, relative."""
PRIOR = 4
ONE_ROUND = 0.15
"""Assumed noise of a round, relative, if no figure has two rounds."""
TRIES = 10
CHANCE = 0.02
"""Probability that any figure of any of the tries exceeds the limit by chance."""
STEADY = 0.3
"""Figures with less variation than this share of the median one's do not show which round was noisy."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Levels of the same figures in two runs, ``[figures, rounds]`` each; the runs may have different numbers of rounds."""

    before: Numbers
    now: Numbers


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Change of figures, ``[figures]`` each.

    Attributes:
        by: Mean level now minus mean level before.
        reach: Limit of chance, see the module.
        variance: Variance of one round of full weight.
    """

    by: Numbers
    error: Numbers
    reach: Numbers
    variance: Numbers


def weigh_rounds(levels: Levels) -> Levels:
    """Compute the weight of each round, 0 to 1, ``[rounds]`` for each run."""
    off = np.abs(np.concatenate([_off(levels.before), _off(levels.now)], axis=1))
    usual = np.median(off, axis=1, keepdims=True)
    floor = STEADY * np.median(usual)
    if floor == 0:  # most figures are the same in most rounds, so the rounds cannot be distinguished
        weights = np.ones(off.shape[1])
    else:
        rough = np.median(off / np.maximum(usual, floor), axis=0)
        weights = np.minimum(1, np.median(rough) / np.maximum(rough, 1e-9)) ** 2
    return Levels(before=weights[: levels.before.shape[1]], now=weights[levels.before.shape[1] :])


def shifts(levels: Levels, weights: Levels, *, kinds: Sequence[str], between_runs: Numbers, chance: float) -> Shift:
    """Compare the mean levels of two runs.

    Args:
        levels: Levels of both runs.
        weights: Weights from :func:`weigh_rounds`.
        kinds: Kind of each figure; figures of a kind share the estimate of their noise.
        between_runs: Variance of each figure's change that no round shows, ``[figures]``.
        chance: Probability that any of the figures exceeds the limit in any of the tries by chance.
    """
    from scipy.stats import t

    runs = [(levels.before, weights.before), (levels.now, weights.now)]
    means = [np.average(level, axis=1, weights=weight) for level, weight in runs]
    squares = sum((weight * (level - mean[:, None]) ** 2).sum(axis=1) for (level, weight), mean in zip(runs, means, strict=True))
    freedom = sum(int(np.count_nonzero(weight)) - 1 for _, weight in runs)  # a round of zero weight does not count
    variance = _shared(np.asarray(squares), freedom, kinds)
    within = variance * sum(1 / weight.sum() for _, weight in runs)
    whole = within + between_runs
    with np.errstate(divide="ignore"):  # without noise the degrees of freedom are infinite
        freedoms = np.where(within > 0, whole**2 / (within**2 / (freedom + PRIOR)), np.inf)
    alone = 1 - (1 - chance) ** (1 / (TRIES * max(1, len(kinds))))
    return Shift(
        by=means[1] - means[0],
        error=np.sqrt(whole),
        reach=t.isf(alone, np.minimum(freedoms, 1e9)) * np.sqrt(whole),
        variance=variance,
    )


def _off(levels: Numbers) -> Numbers:
    found: Numbers = levels - np.median(levels, axis=1, keepdims=True)
    return found


def _shared(squares: Numbers, freedom: int, kinds: Sequence[str]) -> Numbers:
    """Variances of the figures, each averaged with the median of its kind."""
    from scipy.stats import chi2

    if freedom == 0:
        return np.full(len(kinds), ONE_ROUND**2)
    named = np.array(kinds)
    middles = np.array([np.median(squares[named == kind]) for kind in kinds]) / chi2.median(freedom)
    found: Numbers = (PRIOR * middles + squares) / (PRIOR + freedom)
    return found
