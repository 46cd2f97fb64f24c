"""Turn a checkpoint into a bundle: fine-tuning, ONNX export, optimization and verification.

Importing this package is cheap: the functions of the stages are imported when they are first used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import serving

if TYPE_CHECKING:
    from export.stages import export, finetune

__all__ = ["export", "finetune"]

_found = [Path(folder).resolve() for folder in getattr(serving, "__path__", [serving.__file__])]
if Path(__file__).resolve().parents[1] / "serving" not in _found:
    raise ImportError(f"{_found[0]} hides tritonize's package serving: rename it, or start Python elsewhere", name="serving")


def __getattr__(name: str) -> object:
    """Import the function of a stage when it is first used."""
    if name in __all__:
        from serving.toolchain import toolchain

        with toolchain(f"export.{name}"):
            from export import stages
        return getattr(stages, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the exported names."""
    return __all__
