"""Options of the serving stages: one dataclass a command. Light, so that ``--help`` is fast."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from serving.option_fields import Option


def parse_model_name(text: str) -> str:
    """Check the name of a model, which becomes a folder and part of URLs.

    Args:
        text: The name.

    Returns:
        The name.

    Raises:
        ValueError: It cannot be one.
    """
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise ValueError(f"{text!r} is not a model name: use letters, digits, '.', '_' and '-', and none of '.' and '-' first")
    return text


Precision = Literal["fp32", "fp16", "int8"]
"""A variant of a bundle."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ModelName = Annotated[
    str, Option("Name of the model: of its folders and of its ensemble in Triton.", parse=parse_model_name, shared=True)
]
Repository = Annotated[Path, Option("Triton model repository.", path="folder", shared=True)]
Device = Annotated[Literal["auto", "cpu", "gpu"], Option("Device to compute on; auto: the GPU if there is one.", shared=True)]
Seed = Annotated[int, Option("Seed of all random choices.", minimum=0, maximum=2**32 - 1, shared=True)]
Force = Annotated[bool, Option("Run the stage even if its inputs have not changed.")]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How a command prints its result."""

    json: Annotated[bool, Option("Print one JSON object on standard output.")] = False
