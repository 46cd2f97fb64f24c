"""What can go wrong, in one tree.

::

    TritonizeError              base: one line for people, and a hint what to do next
    ├── SetupError              the machine or an environment lacks something
    ├── DataError               rows, columns or labels are not what the task needs
    ├── ArtifactError           a checkpoint, bundle or repository is missing, damaged or of another kind
    │   └── DivergedError       a training came to numbers that are none
    ├── ExportError             a checkpoint could not be converted, optimised or quantised
    ├── GateError               everything ran, and a figure is outside its gate
    ├── ServerError             Triton did not start, stopped, or cannot be found
    └── RequestError            Triton answered a request with an error (carries its status code)

Only the command line prints these (``export.cli.main``); everything else raises them.
"""

from __future__ import annotations


class TritonizeError(Exception):
    """Base of every error tritonize raises on purpose.

    Args:
        message: what happened, one line, naming the file, row or option concerned.
        hint: what to do next, one line; empty where the message says it all.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SetupError(TritonizeError):
    """The machine or one of the two environments lacks something."""


class DataError(TritonizeError):
    """Rows, columns or labels are not what the task needs."""


class ArtifactError(TritonizeError):
    """A checkpoint, bundle or repository is missing, damaged or of another kind."""


class DivergedError(ArtifactError):
    """A training came to numbers that are none."""


class ExportError(TritonizeError):
    """A checkpoint could not be converted, optimised or quantised."""


class GateError(TritonizeError):
    """Everything ran, and a figure is outside its gate."""


class ServerError(TritonizeError):
    """Triton did not start, stopped, or cannot be found."""


class RequestError(TritonizeError):
    """Triton answered a request with an error.

    Args:
        status: Triton's status name in gRPC's spelling, such as ``INVALID_ARGUMENT`` or ``UNAVAILABLE``.
    """

    def __init__(self, message: str, *, status: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
