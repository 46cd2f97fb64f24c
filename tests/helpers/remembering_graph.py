"""A graph whose logits depend on all tokens that a row has read: a row in a wrong place of the cache gets other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from serving.runtime.generation.step_graph import PromptChunk
from serving.runtime.types import Floats, Integers

VOCABULARY = 50


def logits_of(history: Sequence[int]) -> Floats:
    """The logits after these tokens."""
    seed = crc32(np.array(history, dtype=np.int64).tobytes())
    return np.random.default_rng(seed).normal(0, 2, VOCABULARY).astype(np.float32)


def greedy_tokens(prompt: Sequence[int], count: int) -> list[int]:
    """What greedy decoding makes of a prompt."""
    history = list(prompt)
    for _ in range(count):
        history.append(int(logits_of(history).argmax()))
    return history[len(prompt) :]


class RememberingGraph:
    """Implements ``StepGraph``; its cache holds the tokens themselves.

    Attributes:
        calls: What was called: ``("prefill", tokens)`` with those of all rows together, ``("step", rows)``, ``("copy", length)``.
        sources: What the encoder read, by the first token of the prompt.
    """

    def __init__(self, *, slots: int, capacity: int = 100) -> None:
        self.slots, self.capacity = slots, capacity
        self.calls: list[tuple[str, int]] = []
        self.sources: dict[int, list[int]] = {}
        self._cache = np.full((slots, capacity), -1, dtype=np.int64)

    def prefill(self, slot: int, chunks: Sequence[PromptChunk]) -> Floats:
        assert len(chunks) == 1 or not any(chunk.start for chunk in chunks)
        self.calls.append(("prefill", max(len(chunk.tokens) for chunk in chunks) * len(chunks)))
        rows = []
        for row, chunk in enumerate(chunks, slot):
            self._cache[row, chunk.start : chunk.start + len(chunk.tokens)] = chunk.tokens
            rows.append(logits_of(self._cache[row, : chunk.start + len(chunk.tokens)].tolist()))
            if chunk.source is not None:
                self.sources[int(chunk.tokens[0])] = chunk.source.tolist()
        return np.array(rows)

    def step(self, tokens: Integers, lengths: Integers) -> Floats:
        self.calls.append(("step", len(tokens)))
        rows = []
        for row, (token, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
            self._cache[row, length] = token
            rows.append(logits_of(self._cache[row, : length + 1].tolist()))
        return np.array(rows)

    def copy(self, source: int, target: int, length: int) -> None:
        assert source != target and length > 0
        self.calls.append(("copy", length))
        self._cache[target, :length] = self._cache[source, :length]
        self._cache[target, length:] = -1
