"""Speed of models that generate text, computed from raw samples only: when each token of each answer came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeFloat

from benchmarks.speed import MEASURE_LONGER, SliceTiming, Spans
from serving.errors import SetupError

TokenTimes = npt.NDArray[np.int64]
"""When each request was sent, and when each token of its answer came, ns on one clock, ``[answers, 1 + tokens]``; where answers
come whole, when each request was sent and answered, ``[answers, 2]``."""


@dataclass(frozen=True, kw_only=True)
class RoundTokenSpeed:
    """How tokens came in one round. Where answers come whole, there are no times to the first token and between tokens: None.

    Attributes:
        tokens_per_second: Tokens of all answers together, prompts included in the time.
        ttft_p50_ms: Time to first token: median time from the request to the first token of its answer, ms.
        ttft_p99_ms: 99th percentile of the same.
        itl_mean_ms: Inter-token latency: mean over the answers of the mean time between two tokens of an answer, ms.
        itl_p50_ms: Median time between two tokens of an answer, ms. Tokens that come together count as one.
        itl_p99_ms: 99th percentile of the same.
        cpu_ms_per_token: Processor time of the model, or of all processes of the server, per token, ms; None if not visible.
        client_cpu_ms_per_token: Processor time of the load generator per token, ms; None in process.
    """

    tokens_per_second: NonNegativeFloat
    ttft_p50_ms: NonNegativeFloat | None = None
    ttft_p99_ms: NonNegativeFloat | None = None
    itl_mean_ms: NonNegativeFloat | None = None
    itl_p50_ms: NonNegativeFloat | None = None
    itl_p99_ms: NonNegativeFloat | None = None
    cpu_ms_per_token: NonNegativeFloat | None = None
    client_cpu_ms_per_token: NonNegativeFloat | None = None


@dataclass(frozen=True, kw_only=True)
class TokenSpeed(RoundTokenSpeed):
    """How tokens came in all rounds: the median of their rates, and the percentiles of all their tokens together."""

    tokens_per_second_low: NonNegativeFloat
    tokens_per_second_high: NonNegativeFloat

    @property
    def tokens_per_cpu_second(self) -> float | None:
        """Tokens per second of processor time of the model or the server; None if it is not visible."""
        return 1e3 / self.cpu_ms_per_token if self.cpu_ms_per_token else None


@dataclass(frozen=True, kw_only=True)
class GenerationSlice:
    """What one slice of timing measured.

    Attributes:
        times: When the tokens came.
        whole_tokens: Tokens of every answer, where answers come whole; None: each token came by itself.
        cpu_seconds: Processor time of the model, or of all processes of the server; None if not visible.
        client_cpu_seconds: Processor time of the load generator; None in process.
    """

    times: TokenTimes
    whole_tokens: int | None = None
    cpu_seconds: float | None = None
    client_cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        """Check that there are answers, of two tokens or more where they come token by token.

        Raises:
            SetupError: There are not.
        """
        streams = self.whole_tokens is None
        if self.times.ndim != 2 or len(self.times) < 1 or self.times.shape[1] < (3 if streams else 2):
            what = "answers of two tokens or more" if streams else "answers"
            raise SetupError(f"a model gave no {what}", hint=MEASURE_LONGER)

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return int(self.times[:, 1:].size) * (self.whole_tokens or 1)

    @property
    def seconds(self) -> float:
        """Time from the first request to the last token."""
        return float(self.times[:, -1].max() - self.times[:, 0].min()) / 1e9

    @property
    def spans(self) -> Spans:
        """Start and end of each request."""
        return self.times[:, [0, -1]]

    def timing(self) -> SliceTiming:
        """Compute the speed of whole answers."""
        latencies = (self.times[:, -1] - self.times[:, 0]) / 1e6
        return SliceTiming(throughput=len(self.times) / self.seconds, seconds=self.seconds, latencies=latencies)

    def token_speed(self) -> RoundTokenSpeed:
        """Compute the speed of tokens."""
        return RoundTokenSpeed(**_figures([self], [self.tokens / self.seconds]))


def tokens_over_rounds(slices: Sequence[GenerationSlice]) -> TokenSpeed:
    """Combine the slices of all rounds into one speed."""
    rates = [one.tokens / one.seconds for one in slices]
    return TokenSpeed(
        **_figures(slices, rates),
        tokens_per_second_low=min(rates),
        tokens_per_second_high=max(rates),
    )


def _figures(slices: Sequence[GenerationSlice], rates: Sequence[float]) -> dict[str, Any]:
    """The fields of :class:`RoundTokenSpeed`; ``rates`` are the tokens per second of the slices."""
    return {
        "tokens_per_second": median(rates),
        **(_waits(slices) if slices[0].whole_tokens is None else {}),
        "cpu_ms_per_token": _per_token(slices, [one.cpu_seconds for one in slices]),
        "client_cpu_ms_per_token": _per_token(slices, [one.client_cpu_seconds for one in slices]),
    }


def _waits(slices: Sequence[GenerationSlice]) -> dict[str, float]:
    """The times to the first token and between tokens."""
    times = np.concatenate([one.times for one in slices])
    first = (times[:, 1] - times[:, 0]) / 1e6
    gaps = np.diff(times[:, 1:], axis=1) / 1e6
    apart = gaps[gaps > 0]
    ttft, itl = np.percentile(first, (50, 99)), np.percentile(apart, (50, 99)) if apart.size else np.zeros(2)
    return {
        "ttft_p50_ms": float(ttft[0]),
        "ttft_p99_ms": float(ttft[1]),
        "itl_mean_ms": float(gaps.mean()),
        "itl_p50_ms": float(itl[0]),
        "itl_p99_ms": float(itl[1]),
    }


def _per_token(slices: Sequence[GenerationSlice], seconds: Sequence[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return 1e3 * sum(known) / sum(one.tokens for one in slices) if len(known) == len(slices) else None


def require_tokens(found: int, wanted: int) -> None:
    """Check the length of an answer: figures of answers of different lengths cannot be compared.

    Raises:
        RuntimeError: It has another number of tokens.
    """
    if found != wanted:
        raise RuntimeError(f"an answer has {found} tokens instead of {wanted}: does the checkpoint have stop strings?")
