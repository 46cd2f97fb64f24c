"""How much figures of two runs may differ for no reason, told by how they differ from round to round.

Levels are logarithms, ``[figures, rounds]``, the higher the better, of one run each. A figure's mean in one run is held against
its mean in the other.

* **Rounds** in which everything jumps about count less: a round weighs as the inverse square of how far the figures are from their
  medians there, beside how far they are in the middle round; none weighs more than that one. All figures together tell this well.
* **Noise** of one figure, from a handful of rounds, says little: it is averaged with the middle of its kind's (throughputs, 99th
  percentiles …), which counts as :data:`PRIOR` more rounds.
* **Between runs** a process may settle on another level (how its memory lies, which core it likes), and no round shows that. It is
  taken to be :data:`BETWEEN_RUNS`, and only runs themselves could tell it.
* **How far is too far** is a quantile of Student's t, its degrees of freedom by Satterthwaite, so that over all figures and
  :data:`TRIES` comparisons hardly anything is beyond it by chance (Šidák).
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
"""Noise of a round, relative, where no figure has two rounds to show it."""
TRIES = 10
CHANCE = 0.02
"""That any figure of any of the tries is out of reach for no reason."""
STEADY = 0.3
"""Figures that hardly move, beside the middle one, do not say which round was rough."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Levels of the same figures in two runs, ``[figures, rounds]`` each; the runs may have different numbers of rounds."""

    before: Numbers
    now: Numbers


@dataclass(frozen=True, kw_only=True)
class Shift:
    """By how much figures changed.

    Args:
        by: from the mean level before to the mean level now, ``[figures]``.
        error: standard error of that.
        reach: how far chance reaches, see the module.
        variance: of one round of full weight.
    """

    by: Numbers
    error: Numbers
    reach: Numbers
    variance: Numbers


def weigh_rounds(levels: Levels) -> Levels:
    """What each round weighs, 0 to 1, in place of the levels: ``[rounds]`` each."""
    off = np.abs(np.concatenate([_off(levels.before), _off(levels.now)], axis=1))
    usual = np.median(off, axis=1, keepdims=True)
    floor = STEADY * np.median(usual)
    if floor == 0:  # most figures are the same in most rounds: no telling them apart
        weights = np.ones(off.shape[1])
    else:
        rough = np.median(off / np.maximum(usual, floor), axis=0)
        weights = np.minimum(1, np.median(rough) / np.maximum(rough, 1e-9)) ** 2
    return Levels(before=weights[: levels.before.shape[1]], now=weights[levels.before.shape[1] :])


def shifts(levels: Levels, weights: Levels, *, kinds: Sequence[str], between_runs: Numbers, chance: float) -> Shift:
    """Compare the runs' means.

    Args:
        weights: from :func:`weigh_rounds`.
        kinds: of each figure; figures of a kind share what is known of their noise.
        between_runs: variance of each figure's change that no round shows.
        chance: that any of the figures is out of reach in any of the tries, for no reason.
    """
    from scipy.stats import t

    runs = [(levels.before, weights.before), (levels.now, weights.now)]
    means = [np.average(level, axis=1, weights=weight) for level, weight in runs]
    squares = sum((weight * (level - mean[:, None]) ** 2).sum(axis=1) for (level, weight), mean in zip(runs, means, strict=True))
    freedom = sum(int(np.count_nonzero(weight)) - 1 for _, weight in runs)  # a round of no weight is none
    variance = _shared(np.asarray(squares), freedom, kinds)
    within = variance * sum(1 / weight.sum() for _, weight in runs)
    whole = within + between_runs
    with np.errstate(divide="ignore"):  # no noise at all has endless degrees of freedom
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
    """Variances of the figures, each averaged with the middle one of its kind."""
    from scipy.stats import chi2

    if freedom == 0:
        return np.full(len(kinds), ONE_ROUND**2)
    named = np.array(kinds)
    middles = np.array([np.median(squares[named == kind]) for kind in kinds]) / chi2.median(freedom)
    found: Numbers = (PRIOR * middles + squares) / (PRIOR + freedom)
    return found
