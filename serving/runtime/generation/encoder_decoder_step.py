"""The graphs of an encoder-decoder: sources are encoded once, and the decoder's rows attend to what the encoder made of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ..model_session import CPU, session_options
from ..types import Floats, Integers
from .step_graph import DecoderGraph, Lengths, PromptChunk

CROSS = "cross."
"""Beginning of the names of the tensors that the encoder writes and the decoder reads."""
ENCODER_STEP = 16
"""Sources are padded to a multiple of this, and encoded together if they are then equally long: so the numbers that come out do not
depend on the other sources."""
WIDTH_STEP = 64
"""The decoder's memory for sources holds a multiple of this: ONNX Runtime sums that many numbers at a time, so the width does not
change a sum whose other terms are 0."""
MOST_ENCODED = 4096
"""Most tokens that are encoded in one call, unless a single source is longer."""


class EncoderDecoderGraph(DecoderGraph):
    """A decoder with its cache, and the encoder; see :class:`~.step_graph.StepGraph`.

    Args:
        encoder: The graph ``encoder.onnx``.
        decoder: The graph ``decoder.onnx``.
        slots: Most rows at a time.
        capacity: Most tokens of a row, the decoder's start tokens included.
        source_capacity: Most tokens of a source.
        threads: Threads of one operator; 0: all cores.

    Raises:
        ValueError: The graphs do not belong together.
    """

    def __init__(self, encoder: Path, decoder: Path, *, slots: int, capacity: int, source_capacity: int, threads: int) -> None:
        super().__init__(decoder, slots=slots, capacity=capacity, threads=threads)
        self.source_capacity = source_capacity
        self._encoder = ort.InferenceSession(str(encoder), session_options(threads=threads), providers=[CPU])
        read = {one.name: one.shape for one in self._session.get_inputs() if one.name.startswith(CROSS)}
        written = {one.name: one.shape for one in self._encoder.get_outputs()}
        if not read or read != written:
            raise ValueError("encoder.onnx does not write what decoder.onnx reads: export the checkpoint again")
        self._shapes = {name: (shape[1], shape[3]) for name, shape in read.items()}
        self._source_lengths = np.zeros(slots, dtype=np.int64)
        self._source_numbers = np.zeros(slots, dtype=np.int64)
        self._encoded = 0
        self._cross: dict[str, Floats] = {}
        self._mask: Floats = np.zeros((slots, 0), dtype=np.float32)
        self._resize(WIDTH_STEP, kept=0)

    def prefill(self, slot: int, chunks: Sequence[PromptChunk]) -> Floats:
        """Encode the sources, if the prompts begin, and read parts of prompts; see :class:`~.step_graph.StepGraph`.

        Raises:
            ValueError: A source has no tokens, or more than there is room for.
        """
        sources = {slot + row: chunk.source for row, chunk in enumerate(chunks) if chunk.source is not None}
        if any(not 0 < len(source) <= self.source_capacity for source in sources.values()):
            raise ValueError(f"a source must have 1 to {self.source_capacity} tokens")
        if sources:
            for place, source in sources.items():
                self._source_lengths[place] = len(source)
            self._fit(slot, slot + len(chunks))
            for places in self._of_equal_length(sources):
                self._encode({place: sources[place] for place in places})
        return super().prefill(slot, chunks)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a row, and what its source was encoded to, unless both rows have the same source."""
        super().copy(source, target, length)
        if self._source_numbers[source] == self._source_numbers[target]:
            return
        self._source_numbers[target] = self._source_numbers[source]
        count = self._source_lengths[target] = self._source_lengths[source]
        self._mask[target] = self._mask[source]
        for tensor in self._cross.values():
            tensor[target, :, :count] = tensor[source, :, :count]

    def _bind(self, slot: int, ids: Integers, positions: Integers, last: Lengths, total: Lengths) -> Any:
        binding = super()._bind(slot, ids, positions, last, total)
        for name, tensor in {"encoder_mask": self._mask, **self._cross}.items():
            part = tensor[slot : slot + len(ids)]
            binding.bind_input(name, "cpu", 0, np.float32, part.shape, part.ctypes.data)
        return binding

    def _fit(self, kept: int, rows: int) -> None:
        """Make the memory for sources as wide as the longest of the first ``rows`` needs; ``kept`` of them are in it."""
        width = -(-int(self._source_lengths[:rows].max()) // WIDTH_STEP) * WIDTH_STEP
        if not self._mask.shape[1] // 2 < width <= self._mask.shape[1]:
            self._resize(width, kept=kept)

    def _resize(self, width: int, *, kept: int) -> None:
        """Allocate memory for sources of this width, which keeps those of the first slots.

        A tensor of before is freed before the next one is allocated, so that only one is there twice.
        """
        self._bindings.clear()  # they name the memory of before
        held = min(width, self._mask.shape[1])
        for name, (heads, size) in self._shapes.items():
            tensor = np.zeros((self.slots, heads, width, size), dtype=np.float32)
            if kept:
                tensor[:kept, :, :held] = self._cross[name][:kept, :, :held]
            self._cross[name] = tensor
        mask = np.zeros((self.slots, width), dtype=np.float32)
        mask[:kept, :held] = self._mask[:kept, :held]
        self._mask = mask
        self._source_numbers[kept:] = 0

    def _encode(self, sources: dict[int, Integers]) -> None:
        """Encode sources that are equally long when padded, each to the slot that is its key."""
        longest = max(map(len, sources.values()))
        ids = np.zeros((len(sources), self._padded(longest)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, source in enumerate(sources.values()):
            ids[row, : len(source)] = source
            mask[row, : len(source)] = 1
        outputs = self._encoder.run(list(self._cross), {"input_ids": ids, "attention_mask": mask})
        for row, (slot, source) in enumerate(sources.items()):
            self._encoded += 1
            self._source_numbers[slot] = self._encoded
            self._mask[slot] = 0
            self._mask[slot, : len(source)] = 1
            for tensor, output in zip(self._cross.values(), outputs, strict=True):
                tensor[slot, :, : len(source)] = output[row, :, : len(source)]

    def _padded(self, length: int) -> int:
        return min(-(-length // ENCODER_STEP) * ENCODER_STEP, self.source_capacity)

    def _of_equal_length(self, sources: dict[int, Integers]) -> Iterator[list[int]]:
        """Divide the slots into groups whose sources are equally long when padded, and not too many tokens."""
        groups: dict[int, list[int]] = {}
        for slot, source in sources.items():
            groups.setdefault(self._padded(len(source)), []).append(slot)
        for length, slots in groups.items():
            most = max(1, MOST_ENCODED // length)
            yield from (slots[start : start + most] for start in range(0, len(slots), most))
