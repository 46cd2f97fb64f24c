"""The graph of a decoder with its cache: a row of the batch lies in a slot, and the rows that run are the first slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..model_session import CPU, session_options
from ..types import Arrays, Floats, Integers
from .shared_prefixes import SharedPrefixes

if TYPE_CHECKING:
    from typing import TypeAlias

Lengths: TypeAlias = "npt.NDArray[np.int32]"

PROMPT_STEP = 16
"""Parts of prompts are padded to a multiple of this; shorter ones to a power of two."""
PAST, PRESENT = "past.", "present."
"""Beginnings of the names of the cache's tensors in the graph, before and after a step."""
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
"""Types of the cache."""


@dataclass(frozen=True)
class PromptChunk:
    """The part of a prompt that is computed in one step.

    Attributes:
        tokens: INT64 ``[count]``.
        start: Tokens of the prompt before this part.
        source: INT64 ``[source]``, what the encoder reads, in the first part; None later, and without an encoder.
    """

    tokens: Integers
    start: int = 0
    source: Integers | None = None


class StepGraph(Protocol):
    """Computes logits of rows, and keeps what they have read. Only the engine's thread calls it.

    Attributes:
        slots: Most rows at a time.
        capacity: Most tokens of a row.
    """

    slots: int
    capacity: int

    def prefill(self, slot: int, chunks: Sequence[PromptChunk]) -> Floats:
        """Read parts of prompts, one a row, in the slots from ``slot`` on.

        Args:
            slot: Slot of the first row.
            chunks: One part a row. If there are several, each is the beginning of its prompt.

        Returns:
            FP32 ``[rows, vocab]``, the logits of each part's last token. The next call overwrites them.
        """
        ...

    def step(self, tokens: Integers, lengths: Integers) -> Floats:
        """Read one token a row, in the first slots.

        Args:
            tokens: INT64 ``[rows]``.
            lengths: INT64 ``[rows]``, the tokens that each row has read before.

        Returns:
            FP32 ``[rows, vocab]``. The next call overwrites them.
        """
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy what the row in slot ``source`` has read, ``length`` tokens, to slot ``target``."""
        ...


class DecoderGraph:
    """A decoder whose attention, ``com.microsoft::GroupQueryAttention``, writes into its cache: past and present are one memory.

    Args:
        path: The graph.
        slots: Most rows at a time.
        capacity: Most tokens of a row.
        threads: Threads of one operator; 0: all cores.

    Raises:
        ValueError: The graph has other inputs or outputs.
    """

    def __init__(self, path: Path, *, slots: int, capacity: int, threads: int) -> None:
        self.slots, self.capacity = slots, capacity
        self._session = ort.InferenceSession(str(path), session_options(threads=threads), providers=[CPU])
        self._cache, self._blocks = _allocate_cache(self._session, slots, capacity)
        vocab = next(output.shape[-1] for output in self._session.get_outputs() if output.name == "logits")
        self.vocab_size = int(vocab)
        self._logits = np.empty((slots, self.vocab_size), dtype=np.float32)
        self._ids = np.zeros((slots, 1), dtype=np.int64)
        self._positions = np.zeros((slots, 1), dtype=np.int64)
        self._last = np.zeros(slots, dtype=np.int32)
        self._total = np.zeros((), dtype=np.int32)
        self._bindings: dict[int, Any] = {}
        self._prefixes = SharedPrefixes(slots)

    def prefill(self, slot: int, chunks: Sequence[PromptChunk]) -> Floats:
        """Read parts of prompts; see :class:`StepGraph`. Neighbours that are equally wide are computed together."""
        for place, chunk in enumerate(chunks, slot):
            if not chunk.start:
                self._prefixes.forget(place)
        found: list[Floats] = []
        for width, group in groupby(chunks, self._width):
            found.append(self._read(slot + sum(map(len, found)), list(group), width).copy())
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _width(self, chunk: PromptChunk) -> int:
        """Return the number of columns for a part of a prompt. It depends on nothing else.

        The operator sums over all columns, in another order for another number of them. So a row's logits are the same, bit by bit,
        whatever rows are computed with it.
        """
        count = len(chunk.tokens)
        if chunk.start:
            return count
        padded = 1 << (count - 1).bit_length() if count <= PROMPT_STEP else -(-count // PROMPT_STEP) * PROMPT_STEP
        return min(padded, self.capacity)

    def _read(self, slot: int, chunks: Sequence[PromptChunk], width: int) -> Floats:
        """Compute parts of prompts, padded on the right to ``width`` columns, in the slots from ``slot`` on."""
        ids = np.zeros((len(chunks), width), dtype=np.int64)
        for row, chunk in zip(ids, chunks, strict=True):
            row[: len(chunk.tokens)] = chunk.tokens
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        positions = starts[:, None] + np.arange(width, dtype=np.int64)
        last = np.array([chunk.start + len(chunk.tokens) - 1 for chunk in chunks], dtype=np.int32)
        total = np.array(chunks[0].start + width, dtype=np.int32)
        self._session.run_with_iobinding(self._bind(slot, ids, positions, last, total))
        return self._logits[: len(chunks)]

    def step(self, tokens: Integers, lengths: Integers) -> Floats:
        """Read one token a row; see :class:`StepGraph`."""
        rows = len(tokens)
        self._ids[:rows, 0] = tokens
        self._positions[:rows, 0] = self._last[:rows] = lengths
        self._total[...] = lengths.max() + 1
        if rows not in self._bindings:
            self._bindings[rows] = self._bind(0, self._ids[:rows], self._positions[:rows], self._last[:rows], self._total)
        self._session.run_with_iobinding(self._bindings[rows])
        return self._logits[:rows]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy what the rows do not have in common yet; see :class:`StepGraph`."""
        start = self._prefixes.copied(source, target, length)
        for block in self._blocks:
            block[:, target, :, start:length] = block[:, source, :, start:length]

    def _bind(self, slot: int, ids: Integers, positions: Integers, last: Lengths, total: Lengths) -> Any:
        """Bind the graph's inputs and outputs to memory; the caller keeps that of the inputs until the graph has run."""
        rows = len(ids)
        binding = self._session.io_binding()
        inputs: Arrays = {"input_ids": ids, "position_ids": positions, "seqlens_k": last, "total_sequence_length": total}
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, layer in self._cache.items():
            part = layer[slot : slot + rows]
            memory = ("cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
            binding.bind_input(name, *memory)
            binding.bind_output(name.replace(PAST, PRESENT, 1), *memory)
        binding.bind_output("logits", "cpu", 0, np.float32, self._logits[:rows].shape, self._logits.ctypes.data)
        return binding


def _allocate_cache(session: Any, slots: int, capacity: int) -> tuple[dict[str, Floats], list[Floats]]:
    """Allocate the cache of a graph, in FP32 or FP16 as its inputs are.

    Returns:
        ``[slots, kv heads, capacity, head size]`` by input name; and the memory of which these are parts,
        ``[tensors, slots, kv heads, capacity, head size]`` for each shape that tensors have.
    """
    inputs = [one for one in session.get_inputs() if one.name.startswith(PAST)]
    shapes = {one.name: (one.shape[1], one.shape[3], DTYPES.get(one.type)) for one in inputs}
    if not shapes or None in {dtype for *_, dtype in shapes.values()}:
        raise ValueError("the graph has no cache in FP32 or FP16: export the checkpoint again")
    if not all(isinstance(heads, int) and isinstance(size, int) for heads, size, _ in shapes.values()):
        raise ValueError("the cache of the graph has no fixed heads: export the checkpoint again")
    cache: dict[str, Floats] = {}
    blocks: list[Floats] = []
    for heads, size, dtype in dict.fromkeys(shapes.values()):
        names = [name for name, shape in shapes.items() if shape == (heads, size, dtype)]
        block = np.zeros((len(names), slots, heads, capacity, size), dtype=dtype)
        blocks.append(block)
        cache.update(zip(names, block, strict=True))
    return cache, blocks
