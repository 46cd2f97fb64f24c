"""Requests to an engine over a graph that remembers what it reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serving.runtime.generation.engine import Engine
from serving.runtime.generation.engine_request import GenerationRequest
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.generation.sampling import Sampling
from serving.runtime.types import Integers
from tests.helpers.remembering_graph import VOCABULARY, RememberingGraph

Make = Callable[..., tuple[Engine, RememberingGraph]]
"""What the fixture ``make`` is."""
CHUNK = 8


class Waiting:
    """Waits for the answer to a request, until it is asked and has left."""

    def __init__(self, is_cancelled: Callable[[], bool]) -> None:
        self.is_gone, self._is_cancelled = False, is_cancelled

    def ask(self) -> None:
        self.is_gone = self._is_cancelled()


@dataclass
class Asked:
    """A request to the engine, and what came of it."""

    request: GenerationRequest
    ended: threading.Event
    why: list[BaseException | None]

    @property
    def tokens(self) -> list[list[int]]:
        assert self.ended.wait(20)
        assert self.why == [None]
        return [list(sequence.token_ids) for sequence in self.request.decoding.sequences()]


def ask(
    prompt: Sequence[int],
    count: int,
    *,
    on_token: Callable[[int, int], bool] = lambda _sequence, _token: False,
    is_cancelled: Callable[[], bool] = lambda: False,
    deadline: float | None = None,
    **options: object,
) -> Asked:
    ids = np.array(prompt, dtype=np.int64)
    parameters = {"max_new_tokens": count, **options}
    chosen = GenerationOptions().with_parameters(parameters, vocab_size=VOCABULARY)  # type: ignore[arg-type]
    return asked(ids, Sampling(chosen, ids, max_length=len(ids) + count, on_token=on_token), is_cancelled, deadline)


def asked(
    ids: Integers, decoding: object, is_cancelled: Callable[[], bool] = lambda: False, deadline: float | None = None
) -> Asked:
    ended = threading.Event()
    why: list[BaseException | None] = []

    def on_end(error: BaseException | None) -> None:
        why.append(error)
        ended.set()

    return Asked(GenerationRequest(ids, decoding, on_end, Waiting(is_cancelled), deadline), ended, why)  # type: ignore[arg-type]
