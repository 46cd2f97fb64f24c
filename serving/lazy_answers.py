"""The answers to inputs that are read one by one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sized
from typing import Any, Self, cast


class LazyAnswers:
    """An iterator of answers, as ``transformers.pipeline`` returns it for a generator or a data set.

    It reads the inputs as far as its requests in flight need them. Like the pipeline's, it has the length of the inputs, and begins
    again with each ``for`` loop where the inputs can be read again.
    """

    def __init__(self, inputs: object, begin: Callable[[], Generator[Any]]) -> None:
        """Create the iterator without reading anything.

        Args:
            inputs: The inputs.
            begin: Returns a generator of the answers, which reads the inputs from their beginning.
        """
        self._inputs = inputs
        self._begin = begin
        self._begun: Generator[Any] | None = None

    def __iter__(self) -> Self:
        if self._begun is not None and not hasattr(self._inputs, "__next__"):
            self.close()
            self._begun = None
        return self

    def __next__(self) -> Any:
        if self._begun is None:
            self._begun = self._begin()
        return next(self._begun)

    def __len__(self) -> int:
        return len(cast("Sized", self._inputs))

    def close(self) -> None:
        """Cancel the requests in flight and read no further."""
        if self._begun is not None:
            self._begun.close()
