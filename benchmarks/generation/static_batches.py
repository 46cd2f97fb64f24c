"""Models that answer several texts in one call, as a static batch: the next batch begins when the longest answer has ended."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.generation.tokenized_texts import TokenizedTexts
from benchmarks.token_speed import TokenTimes


@dataclass
class Written:
    """The answers of one batch, and when their tokens came.

    Attributes:
        stamps: When the tokens of each answer came, ns; None: answers come whole.
    """

    tokens: list[list[int]]
    stamps: list[list[int]] | None = None


class StaticBatches(ABC):
    """A model whose batches are static.

    Attributes:
        file: The file that was loaded; its checksum tells which variant ran.
        threads: Threads of one operator.
        texts: Tokenizes what the model reads.
    """

    file: Path
    threads: int
    texts: TokenizedTexts

    @abstractmethod
    def _write(self, prompts: list[list[int]]) -> Written:
        """Generate answers to some texts, each given as its tokens. All answers have equally many tokens."""

    @abstractmethod
    def precision(self) -> str:
        """Name the precision that the model computes in."""

    def measure(self, prompts: Sequence[str], in_flight: int, seconds: float) -> TokenTimes:
        """Answer batches of ``in_flight`` texts until the time is over."""
        stream = itertools.cycle(prompts)
        rows: list[list[int]] = []
        deadline = time.perf_counter_ns() + round(seconds * 1e9)
        while not rows or rows[-1][-1] < deadline:
            batch = list(itertools.islice(stream, in_flight))
            sent = time.perf_counter_ns()
            written = self._write([self.texts.tokens(prompt) for prompt in batch])
            for tokens in written.tokens:
                self.texts.decode(tokens)
            ended = time.perf_counter_ns()
            rows += [[sent, *stamps] for stamps in written.stamps or [[ended]] * len(batch)]
        return np.array(rows, dtype=np.int64)
