"""The errors that tritonize raises on purpose, in one tree.

::

    TritonizeError              base class: what happened in one line, and a hint what to do next
    ├── SetupError              this machine or one of the environments lacks something
    ├── DataError               rows, columns or labels do not fit the task
    ├── ArtifactError           a checkpoint, bundle or repository is missing, damaged or of the wrong kind
    │   └── DivergedError       training diverged: the loss is NaN or infinite
    ├── ExportError             a checkpoint could not be converted, optimized or quantized
    ├── GateError               every step ran, but a measured value is outside its gate
    ├── ServerError             Triton did not start, stopped, or was not found
    └── RequestError            a request failed; carries Triton's status code
        └── InvalidArgumentError    the server refused its content; also a ValueError
            └── PipelineError           transformers.pipeline raises its PipelineException for it; also one of these

A ``TruncationWarning`` is a warning and stands beside the tree. Only the main functions of the programs (``export.cli.main``,
``serving.background.main``) print them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Self


class TritonizeError(Exception):
    """Base class of every error that tritonize raises on purpose.

    Attributes:
        message: What happened, in one line that names the file, row or option.
        hint: What to do next, in one line. Empty if the message already says it. A traceback shows it as a note of the exception.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Create the error from its message and hint."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # a traceback shows it below the message

    @property
    def message_with_hint(self) -> str:
        """The message, followed by the hint in brackets if there is one."""
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[object, ...]]:
        """Pickle the attributes: a process pool would wait for ever for an error that cannot be made from its message alone."""
        return _restore, (type(self), self.args, vars(self))


class SetupError(TritonizeError):
    """This machine or one of the two environments lacks something."""


class DataError(TritonizeError):
    """Rows, columns or labels do not fit the task."""


class ArtifactError(TritonizeError):
    """A checkpoint, bundle or repository is missing, damaged or of the wrong kind."""


class DivergedError(ArtifactError):
    """Training diverged: the loss is NaN or infinite."""


class ExportError(TritonizeError):
    """A checkpoint could not be converted, optimized or quantized."""


class GateError(TritonizeError):
    """Every step ran, but a measured value is outside its gate."""


class ServerError(TritonizeError):
    """Triton did not start, stopped, or was not found."""


class NoServerError(ServerError):
    """Nothing answers at the address of the server."""


class RequestError(TritonizeError):
    """A request to Triton failed.

    Attributes:
        status: The name of the gRPC status code, such as ``INVALID_ARGUMENT`` or ``UNAVAILABLE``.
        request_id: The id of the request in the log of the server, or the one that the caller gave if no answer came in time; None:
            it is not known.
    """

    request_id: str | None = None

    def __init__(self, message: str, *, status: str, hint: str = "") -> None:
        """Create the error from its message, status and hint."""
        super().__init__(message, hint=hint)
        self.status = status

    def of_request(self, request_id: str | None) -> Self:
        """Set :attr:`request_id`, which a traceback then shows as a note, and return the error."""
        if request_id is not None:
            self.request_id = request_id
            self.add_note(f"request id: {request_id}")
        return self

    @property
    def message_with_hint(self) -> str:
        """The message, followed by the hint and the id of the request in brackets, as far as there are any."""
        named = None if self.request_id is None else f"request id {self.request_id}"
        more = "; ".join(part for part in (self.hint, named) if part)
        return f"{self.message} ({more})" if more else self.message

    @classmethod
    def of(cls, message: str, *, status: str, hint: str = "") -> RequestError:
        """Create the error whose class belongs to ``status``."""
        if status == InvalidArgumentError.status:
            return InvalidArgumentError(message, hint=hint)
        return cls(message, status=status, hint=hint)


class InvalidArgumentError(RequestError, ValueError):
    """The server refused the content of a request."""

    status = "INVALID_ARGUMENT"

    def __init__(self, message: str, *, hint: str = "") -> None:
        """Create the error from its message and hint."""
        super().__init__(message, status=self.status, hint=hint)


class PipelineError(InvalidArgumentError):
    """The server refused a text for which ``transformers.pipeline`` raises its ``PipelineException``.

    Attributes:
        task: The name of the task.
        model: The name of the ensemble.
    """

    def __init__(self, message: str, *, task: str, model: str, hint: str = "") -> None:
        """Create the error from its message, task, model and hint."""
        super().__init__(message, hint=hint)
        self.task = task
        self.model = model

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[object, ...]]:
        """Pickle the attributes. A copy has the class that :meth:`catchable` returns where it is made."""
        return _restore_pipeline_error, (self.args, vars(self))

    @staticmethod
    def catchable() -> type[PipelineError]:
        """Return a class whose errors ``except PipelineException`` catches too.

        Code that has such a clause has imported ``transformers``. Where nobody has, the class is this one.
        """
        base = sys.modules.get("transformers.pipelines.base")
        return PipelineError if base is None else _with_base(base.PipelineException)


class TruncationWarning(UserWarning):
    """Texts were longer than the model takes, and were truncated."""


@cache
def _with_base(base: type[Exception]) -> type[PipelineError]:
    return type(PipelineError.__name__, (PipelineError, base), {"__doc__": PipelineError.__doc__, "__module__": __name__})


def _restore(kind: type[TritonizeError], arguments: tuple[object, ...], attributes: Mapping[str, object]) -> TritonizeError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(attributes)
    return error


def _restore_pipeline_error(arguments: tuple[object, ...], attributes: Mapping[str, object]) -> TritonizeError:
    return _restore(PipelineError.catchable(), arguments, attributes)


@contextlib.contextmanager
def refusing(message: str, *, hint: str) -> Iterator[None]:
    """Turn any error of the block into one line: a damaged file makes the libraries raise errors of every type.

    Args:
        message: What could not be done.
        hint: What to do next.

    Raises:
        ArtifactError: The block failed.
    """
    try:
        yield
    except (TritonizeError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of the tokenizers library are no Exception
        raise ArtifactError(f"{message}: {first_line(error)}", hint=hint) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
