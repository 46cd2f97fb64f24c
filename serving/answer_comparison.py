"""Compares an ensemble's answers with those that packaging recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serving.manifests import ExpectedTensor
from serving.options import ServedPrecision

TOLERANCES: Mapping[ServedPrecision, float] = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 8e-2, "int8": 5e-2, "int8_rowwise": 5e-2}
"""How far a number may be from the recorded one, relative to the largest number of its tensor, by precision of the model.

Other processors sum in another order and have other approximations of exp and erf; GPUs may round fp32 factors to 11 bits (TF32).
That is below 1e-3 in fp32. A number in fp16 has 11 bits, in bf16 8, and an int8 factor 7, and the errors of the layers add up: ten
times the rounding of one number, 2**-10, 2**-7 and 2**-8, is allowed.
"""
SMALLEST_SCALE = 0.1
"""The tolerance is relative to this where all numbers of a tensor are smaller."""
Path = tuple[str, ...]


def tensor_values(datatype: str, data: Sequence[Any]) -> list[Any]:
    """Return the elements of a tensor in Triton's JSON with their structure.

    Args:
        datatype: Triton's name of the data type.
        data: The flat elements.

    Returns:
        Numbers as floats for floating point types. Strings that hold a JSON list or object are parsed.
    """
    if datatype.startswith("FP"):
        return [float(number) for number in data]
    return [_parsed(text) for text in data] if datatype == "BYTES" else list(data)


def _parsed(text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text  # a label may look like this


def largest_number(values: object) -> float:
    """Return the largest absolute value of all floats in a structure of lists and dicts; 0 if there is none."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        return max(map(largest_number, values), default=0.0)
    return abs(values) if isinstance(values, float) else 0.0


def differences(expected: object, found: object, margin: float, at: Path = ()) -> Iterator[tuple[Path, object, object]]:
    """Yield where two structures of lists and dicts differ: the path, what was expected and what was found.

    Args:
        expected: One structure.
        found: The other.
        margin: How far two floats may be from each other.
        at: The path of both.
    """
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, margin, (*at, str(index)))
    elif isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        for key in expected:
            yield from differences(expected[key], found[key], margin, (*at, key))
    elif isinstance(expected, float) and isinstance(found, float):
        if not abs(expected - found) <= margin:  # NaN differs from everything
            yield at, expected, found
    elif type(expected) is not type(found) or expected != found:
        yield at, expected, found


def first_difference(expected: ExpectedTensor, output: Mapping[str, Any] | None, tolerance: float) -> str | None:
    """Compare one tensor of an answer with the recorded one.

    Args:
        expected: The recorded tensor.
        output: The tensor in Triton's JSON; None if the answer does not have it.
        tolerance: See :data:`TOLERANCES`.

    Returns:
        What is different, or None.
    """
    if output is None:
        return f"{expected.name} is missing"
    form = output["datatype"], output["shape"]
    if form != (expected.datatype, list(expected.shape)):
        return f"{expected.name} is {form[0]} {form[1]}, expected {expected.datatype} {list(expected.shape)}"
    wanted, found = (tensor_values(expected.datatype, data) for data in (expected.data, output["data"]))
    margin = tolerance * max(largest_number(wanted), SMALLEST_SCALE)
    undecided = [tuple(path.split("/")) for path in expected.undecided]
    for path, one, other in differences(wanted, found, margin):
        if not any(path[: len(open_path)] == open_path for open_path in undecided):
            place = f"{expected.name}/{'/'.join(path)}" if len(wanted) > 1 or len(path) > 1 else expected.name
            within = f" within {margin:.2g}" if isinstance(one, float) else ""
            return f"{place} is {_shown(other)}, expected {_shown(one)}{within}"
    return None


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{json.dumps(value, ensure_ascii=False):.80}"
