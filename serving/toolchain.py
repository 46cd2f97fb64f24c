"""The packages that commands and stages need and the client alone does not: the extras ``cpu`` and ``gpu`` of the distribution."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def toolchain(what: str) -> Iterator[None]:
    """Say how to install the toolchain if an import in the block does not find one of its packages.

    Args:
        what: What needs it, such as ``the command tritonize``.

    Raises:
        ImportError: A package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        message = (
            f"{what} needs {error.name}, which is not installed: install tritonize with the extra cpu or gpu, as tritonize[cpu]"
        )
        raise ImportError(message, name=error.name) from error
