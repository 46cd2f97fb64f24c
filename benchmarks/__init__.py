"""Measure the speed and quality of a served model against the PyTorch original.

Importing this package is cheap: the function of the stage is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import export as export  # it checks that no other folder hides the package serving
from serving.toolchain import toolchain

if TYPE_CHECKING:
    from benchmarks.stages import benchmark

__all__ = ["benchmark"]


def __getattr__(name: str) -> object:
    """Import the function of a stage when it is first used."""
    if name in __all__:
        with toolchain(f"benchmarks.{name}"):
            from benchmarks import stages
        return getattr(stages, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the exported names."""
    return __all__
