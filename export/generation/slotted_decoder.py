"""Run a decoder's graph for its verification: some rows begin together, and each step appends a token to all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export import graph
from serving.errors import ExportError, first_line

Logits = npt.NDArray[np.float32]
"""``[rows, vocabulary]``."""
DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


class SlottedDecoder:
    """A decoder's graph with a cache for some rows."""

    def __init__(
        self,
        path: Path,
        *,
        rows: int,
        capacity: int,
        threads: int = 0,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
    ) -> None:
        """Load the graph.

        Args:
            path: The graph.
            rows: Maximum number of rows.
            capacity: Maximum number of tokens per row.
            threads: Number of threads; 0: one per core.
            providers: Execution providers of ONNX Runtime.

        Raises:
            ExportError: ONNX Runtime cannot load the graph.
        """
        self.session = graph.session(path, providers=providers, threads=threads)
        self.rows, self.capacity = rows, capacity
        self.cache = {
            one.name: np.zeros((rows, one.shape[1], capacity, one.shape[3]), dtype=DTYPES[one.type])
            for one in self.session.get_inputs()
            if one.name.startswith("past.")
        }
        self.lengths: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def begin(self, prompts: Sequence[Sequence[int]]) -> Logits:
        """Forget all rows, and compute the logits that follow each prompt.

        Args:
            prompts: Tokens of each row.

        Returns:
            ``[rows, vocabulary]``.
        """
        counts = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
        tokens = np.zeros((len(prompts), counts.max()), dtype=np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        self.lengths = np.zeros(len(prompts), dtype=np.int64)
        return self._step(tokens, counts)

    def advance(self, tokens: npt.NDArray[np.int64]) -> Logits:
        """Append a token to each row, and compute the logits that follow.

        Args:
            tokens: INT64 ``[rows]``; there may be fewer than before: then the last rows leave.

        Returns:
            ``[rows, vocabulary]``.
        """
        self.lengths = self.lengths[: len(tokens)]
        return self._step(tokens[:, None], np.ones(len(tokens), dtype=np.int64))

    def _step(self, tokens: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> Logits:
        rows, positions = len(tokens), self.lengths[:, None] + np.arange(tokens.shape[1])
        self.lengths = self.lengths + counts
        if rows > self.rows or self.lengths.max() > self.capacity:
            raise ValueError(f"the cache holds {self.rows} rows of {self.capacity} tokens")
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", tokens)
        binding.bind_cpu_input("position_ids", positions)
        binding.bind_cpu_input("seqlens_k", (self.lengths - 1).astype(np.int32))
        binding.bind_cpu_input("total_sequence_length", np.array(self.lengths.max(), dtype=np.int32))
        for name, values in self.cache.items():
            slots = ("cpu", 0, values.dtype, (rows, *values.shape[1:]), values.ctypes.data)
            binding.bind_input(name, *slots)
            binding.bind_output(name.replace("past", "present"), *slots)
        binding.bind_output("logits")
        try:
            self.session.run_with_iobinding(binding)
        except (*graph.FAILURES, RuntimeError) as error:  # what it raises with a binding is a RuntimeError
            raise ExportError(f"ONNX Runtime cannot run the graph: {first_line(error)[:400]}") from error
        logits: Logits = binding.copy_outputs_to_cpu()[-1]
        return logits

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
