"""A call of the pipeline: what its arguments and the options of the client mean for the task."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from serving import streams
from serving.lazy_inputs import batch_rows, is_batched, is_generator_or_torch_dataset, is_lazy, iterate
from serving.own_answers import encoded
from serving.raw_rows import NO_ROWS
from serving.runtime.tasks.base import ServedTask
from serving.runtime.types import JsonValue, require_text

BATCHING = ("batch_size", "num_workers")
"""Options of every pipeline that are not the task's."""


@dataclass(frozen=True, kw_only=True)
class PipelineCall:
    """One call of the pipeline, without its inputs.

    Attributes:
        task: The task of the ensemble.
        named: The arguments that go with the inputs of the call, by name: its own, and the client's defaults of others.
        given: The options of the call itself.
        parameters: Options that the server applies, sent as request parameters.
        formatting: Options that the client applies to the server's answer.
        batch_size: Rows in one request; None: as the client says.
    """

    task: ServedTask
    named: Mapping[str, object]
    given: Mapping[str, object]
    parameters: Mapping[str, JsonValue]
    formatting: Mapping[str, object]
    batch_size: int | None

    @classmethod
    def read(
        cls, task: ServedTask, arguments: tuple[object, ...], options: Mapping[str, object], defaults: Mapping[str, object]
    ) -> tuple[object, Self]:
        """Split the arguments of a call into its inputs and all else.

        Args:
            task: The task of the ensemble.
            arguments: The arguments by position.
            options: The arguments by name.
            defaults: Options of the client, which hold where the call has no other value.

        Returns:
            The inputs, and the call.

        Raises:
            TypeError: The arguments do not go together, or an option is unknown or of another type.
            KeyError: An option is not one of its choices.
            ValueError: An option has a value that is not allowed.
        """
        batch_size = check_batching(options)
        own = {name: value for name, value in options.items() if name not in BATCHING}
        named = {name: value for name, value in defaults.items() if name not in task.positional[: len(arguments)]} | own
        inputs, left = task.parse_call(arguments, named)
        given: Mapping[str, object] = {name: value for name, value in left.items() if name not in defaults or name in own}
        usual, given = task.expand_options({name: value for name, value in defaults.items() if name in left}, given)
        parameters, formatting = _sanitized(task, usual)
        own_parameters, own_formatting = _sanitized(task, given)
        parameters = {**task.pipeline_defaults(), **task.joined_parameters(parameters, own_parameters)}
        task.with_options(parameters)
        _require_texts(task.sent_parameters(parameters))
        return inputs, cls(
            task=task,
            named=named,
            given=given,
            parameters=parameters,
            formatting={**formatting, **own_formatting},
            batch_size=batch_size,
        )

    @classmethod
    def raw(cls, task: ServedTask, parameters: Mapping[str, JsonValue], defaults: Mapping[str, object]) -> Self:
        """Return a call for the output tensors themselves.

        Args:
            task: The task of the ensemble.
            parameters: The request parameters.
            defaults: Options of the client. Those that the server applies hold where ``parameters`` have no other value.

        Raises:
            TypeError: An option of the client has another type.
            KeyError: It is not one of its choices.
            ValueError: It has a value that is not allowed.
        """
        known, (usual, own) = task.call_options, task.expand_options(defaults, {})
        chosen = {**usual, **own}
        applied, _ = _sanitized(task, {name: value for name, value in chosen.items() if name in known and name in task.options})
        _require_texts(sent := task.joined_parameters(applied, parameters))
        return cls(task=task, named={}, given={}, parameters=sent, formatting={}, batch_size=None)

    def request(self, rows: Sequence[tuple[str, ...]]) -> tuple[dict[str, list[bytes]], dict[str, object]]:
        """Return the rows of each input tensor of a request, and its parameters.

        Raises:
            DataError: A text cannot be encoded as UTF-8.
        """
        texts, described = self.task.request_rows(rows)
        sent = self.task.sent_parameters(self.parameters)
        columns = zip(self.task.inputs(), zip(*texts, strict=True), strict=True)
        return {tensor.name: list(map(encoded, column)) for tensor, column in columns}, {**sent, **described}


def _require_texts(parameters: Mapping[str, object]) -> None:
    """Check that a request can hold its parameters: gRPC ends the call without an error where a string is no UTF-8.

    Raises:
        ValueError: The name or the value of one holds half of a surrogate pair.
    """
    for name, value in parameters.items():
        require_text("the name of an option", name)
        if isinstance(value, str):
            require_text(f"option {name}", value)


def _sanitized(task: ServedTask, options: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
    """Return what the task makes of options, or nothing of none: that would take most of the time of an ordinary call."""
    return task.sanitize_parameters(options) if options else ({}, {})


@dataclass(frozen=True, kw_only=True)
class LazyCall:
    """A call whose inputs are read one by one.

    Attributes:
        inputs: The inputs.
        call: All else.
    """

    inputs: object
    call: PipelineCall

    @classmethod
    def read(
        cls, task: ServedTask, arguments: tuple[object, ...], options: Mapping[str, object], defaults: Mapping[str, object]
    ) -> Self | None:
        """Read the arguments of a call as :meth:`PipelineCall.read` does. None: its inputs are of another kind."""
        name, *_ = task.positional
        if len(arguments) > len(task.positional) or (arguments and name in options):
            return None  # PipelineCall.read says what is wrong
        named = dict(zip(task.positional, arguments, strict=False)) | dict(options)
        inputs = named.pop(name, None)
        if not is_lazy(inputs) or (task.lists_iterables and not (is_generator_or_torch_dataset(inputs) or is_batched(inputs))):
            return None
        return cls(inputs=inputs, call=PipelineCall.read(task, ([],), named, defaults)[1])

    def items(self) -> AsyncGenerator[object, None]:
        """Yield the items of the inputs. A thread reads them, because that may block, except from lists and asynchronous inputs.

        Raises:
            TypeError: The inputs are one text or one dict, whose items would be letters or keys.
        """
        if isinstance(self.inputs, NO_ROWS):
            raise TypeError(f'inputs must be several rows, such as ["a text"], not {self.inputs!r:.80}')
        if isinstance(self.inputs, AsyncIterable):
            return _passed_on(self.inputs)
        if isinstance(self.inputs, list | tuple):
            return streams.each(self.inputs)
        return streams.each_in_thread(iterate(self.inputs))


async def _passed_on(inputs: AsyncIterable[object]) -> AsyncGenerator[object, None]:
    async for item in inputs:
        yield item


class ItemGroups:
    """Turns items into rows, and the answers to the rows into answers to the items: an item that is a batch has several rows."""

    def __init__(self, lazy: LazyCall) -> None:
        """Create it for the items of ``lazy``."""
        self._call = lazy.call
        self._batched = is_batched(lazy.inputs)
        self._sizes: deque[int | None] = deque()
        self._answers: list[object] = []

    async def rows(self, items: AsyncIterable[object]) -> AsyncGenerator[tuple[str, ...], None]:
        """Yield the rows of each item.

        Raises:
            TypeError: An item has a form that the pipeline does not take.
            ValueError: As ``TypeError``, for the content.
        """
        task = self._call.task
        async for item in items:
            listed = batch_rows(item) if self._batched else [item]
            rows = task.parse_items(task.parse_call((listed,), self._call.named)[0])
            self._sizes.append(len(rows) if self._batched else None)
            for row in rows:
                yield row

    def finished(self, *answers: object) -> Iterator[object]:
        """Take the answers to the next rows, and yield the answers to the items that are complete: a list for a batch."""
        self._answers.extend(answers)
        while self._sizes and len(self._answers) >= (1 if self._sizes[0] is None else self._sizes[0]):
            size = self._sizes.popleft()
            if size is None:
                yield self._answers.pop(0)
            else:
                yield self._answers[:size]
                del self._answers[:size]


def check_batching(options: Mapping[str, object]) -> int | None:
    """Check ``batch_size`` and ``num_workers``, and return the first.

    Raises:
        ValueError: One is not a number that the pipeline takes.
    """
    for name, least in zip(BATCHING, (1, 0), strict=True):
        value = options.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name} must be a whole number of {least} or more, not {value!r:.80}")
    size = options.get("batch_size")
    return size if isinstance(size, int) else None
