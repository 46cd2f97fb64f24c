"""Run a decoder's graph for its verification as it is served: some rows begin together, and each step appends a token to them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export import graph
from serving.errors import ExportError, first_line
from serving.runtime.generation.step_graph import DecoderGraph, PromptChunk

Logits = npt.NDArray[np.float32]
"""``[rows, vocabulary]``."""


class SlottedDecoder:
    """A decoder's graph with a cache for some rows."""

    def __init__(self, path: Path, *, rows: int, capacity: int, threads: int = 0) -> None:
        """Load the graph.

        Args:
            path: The graph.
            rows: Maximum number of rows.
            capacity: Maximum number of tokens per row.
            threads: Number of threads; 0: one per core.

        Raises:
            ExportError: ONNX Runtime cannot load the graph.
        """
        with _onnxruntime_errors():
            self.graph = DecoderGraph(path, slots=rows, capacity=capacity, threads=threads)
        self.rows, self.capacity = rows, capacity
        self.lengths: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def begin(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Forget all rows, and compute the logits that follow each prompt.

        Args:
            prompts: Tokens of each row.

        Returns:
            ``[rows, vocabulary]``.

        Raises:
            ExportError: ONNX Runtime cannot run the graph.
        """
        counts = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        self._require_room(counts)
        with _onnxruntime_errors():
            logits = self.graph.prefill(0, [PromptChunk(np.array(prompt, dtype=np.int64)) for prompt in prompts]).copy()
        self.lengths = counts
        return logits

    def advance(self, tokens: npt.NDArray[np.int64]) -> Logits:
        """Append a token to each row, and compute the logits that follow.

        Args:
            tokens: INT64 ``[rows]``; there may be fewer than before: then the last rows leave.

        Returns:
            ``[rows, vocabulary]``.

        Raises:
            ExportError: ONNX Runtime cannot run the graph.
        """
        before = self.lengths[: len(tokens)]
        self._require_room(before + 1)
        with _onnxruntime_errors():
            logits = self.graph.step(tokens, before).copy()
        self.lengths = before + 1
        return logits

    def _require_room(self, lengths: npt.NDArray[np.int64]) -> None:
        if len(lengths) > self.rows or lengths.max() > self.capacity:
            raise ValueError(f"the cache holds {self.rows} rows of {self.capacity} tokens")

    def greedy(self, prompts: Sequence[Sequence[int]], *, new_tokens: int, end: Collection[int] = ()) -> list[list[int]]:
        """Append the most probable token to all prompts together, again and again.

        Args:
            prompts: Tokens of each row.
            new_tokens: Maximum number of tokens to append.
            end: Tokens that end a row. They are part of its answer.

        Returns:
            The new tokens of each prompt.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        logits = self.begin(prompts)
        while True:
            chosen = logits.argmax(axis=-1)
            for answer, token in zip(answers, chosen, strict=True):
                if not answer or (answer[-1] not in end and len(answer) < new_tokens):
                    answer.append(int(token))
            if all(len(answer) == new_tokens or answer[-1] in end for answer in answers):
                return answers
            logits = self.advance(chosen)


@contextlib.contextmanager
def _onnxruntime_errors() -> Iterator[None]:
    try:
        yield
    except (*graph.FAILURES, RuntimeError) as error:  # what it raises with a binding is a RuntimeError
        raise ExportError(f"ONNX Runtime cannot run the graph: {first_line(error)[:400]}") from error
