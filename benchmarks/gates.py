"""Gates: comparisons of figures that must hold, such as ``served.int8.c16.throughput >= 2 * pytorch.fp32.throughput``.

A gate is evaluated in every round, on figures measured seconds apart, and passes if it holds in more than half of them.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import isfinite
from statistics import median

from benchmarks.verdicts import BenchmarkGate, Miss
from serving.errors import DataError

_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.cmpop], tuple[str, Callable[[float, float], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_GRAMMAR = "a gate compares figures and numbers with <, <=, > or >=, and calculates with + - * / and brackets"


def parse_gate(expression: str) -> ast.Compare:
    """Parse a gate and check that it contains only figures, numbers, arithmetic and comparisons. Nothing is executed.

    Raises:
        DataError: It is not a gate.
    """
    try:
        body = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"gate {expression!r} cannot be read: {error}", hint=_GRAMMAR) from None
    if not isinstance(body, ast.Compare):
        raise DataError(f"gate {expression!r} compares nothing", hint=_GRAMMAR)
    for comparison in body.ops:
        if type(comparison) not in _COMPARISONS:
            raise DataError(f"gate {expression!r} uses a comparison that gates do not have", hint=_GRAMMAR)
    for side in (body.left, *body.comparators):
        _check(side, expression)
    return body


def figures_in(expression: str) -> list[str]:
    """List the names of the figures that a gate compares.

    Raises:
        DataError: It is not a gate.
    """
    nodes = [node for node in ast.walk(parse_gate(expression)) if isinstance(node, ast.Name | ast.Attribute)]
    parts = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}  # the a and a.b of a.b.c
    return [ast.unparse(node) for node in nodes if id(node) not in parts]


def check_gate(expression: str, rounds: Sequence[Mapping[str, float]]) -> BenchmarkGate:
    """Evaluate a gate in every round; it passes if it holds in more than half of them.

    Figures that are the same in all rounds are in each.

    Returns:
        The result. A gate fails, and says why, if it names a figure that was not measured, divides by zero, or is NaN or infinite.

    Raises:
        DataError: It is not a gate.
    """
    parsed = parse_gate(expression)
    unchecked = partial(BenchmarkGate, expression=expression, comparison="", held=0, rounds=len(rounds), passed=False)
    unknown = [name for name in figures_in(expression) if any(name not in figures for figures in rounds)]
    if unknown:
        near = closest(unknown[0], set(rounds[0]).intersection(*rounds))
        return unchecked(why=f"no figure is called {unknown[0]}{f'; close to it: {near}' if near else ''}")
    try:
        values = [[_value(side, figures) for side in (parsed.left, *parsed.comparators)] for figures in rounds]
    except ZeroDivisionError:
        return unchecked(why="it divides by zero")
    except OverflowError:
        return unchecked(why="it is not a finite number")
    if not all(isfinite(side) for sides in values for side in sides):
        return unchecked(why="it is not a finite number")
    symbols, holds = zip(*(_COMPARISONS[type(comparison)] for comparison in parsed.ops), strict=True)
    held = sum(all(hold(left, right) for hold, left, right in zip(holds, sides, sides[1:], strict=False)) for sides in values)
    medians = [median(side) for side in zip(*values, strict=True)]
    sides = " ".join([f"{medians[0]:.6g}", *(f"{symbol} {side:.6g}" for symbol, side in zip(symbols, medians[1:], strict=True))])
    passed = 2 * held > len(rounds)
    missed = None if passed else _miss(parsed, medians)
    return BenchmarkGate(expression=expression, comparison=sides, held=held, rounds=len(rounds), passed=passed, missed=missed)


def closest(name: str, names: Iterable[str]) -> str:
    """Select those of ``names`` that are similar to ``name``, separated by commas; empty if none is."""
    return ", ".join(difflib.get_close_matches(name, list(names), n=3, cutoff=0.5))


def _miss(gate: ast.Compare, medians: Sequence[float]) -> Miss | None:
    """The largest miss of the medians in the chain; None if they hold."""
    nodes, misses = [gate.left, *gate.comparators], []
    for index, comparison in enumerate(gate.ops):
        left, right = medians[index], medians[index + 1]
        if not _COMPARISONS[type(comparison)][1](left, right):
            turned = _is_limit(nodes[index]) and not _is_limit(nodes[index + 1])  # 500 <= throughput: the limit is on the left
            misses.append(Miss(value=right, limit=left) if turned else Miss(value=left, limit=right))
    return max(misses, key=lambda miss: abs(miss.value - miss.limit) / abs(miss.limit or 1), default=None)


def _is_limit(node: ast.expr) -> bool:
    """Whether a side names no figure."""
    return not any(isinstance(part, ast.Name) for part in ast.walk(node))


def _check(node: ast.expr, expression: str) -> None:
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            pass
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check(operand, expression)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _ARITHMETIC:
            _check(left, expression)
            _check(right, expression)
        case ast.Name():
            pass
        case ast.Attribute(value=value) if isinstance(value, ast.Name | ast.Attribute):
            _check(value, expression)
        case _:
            raise DataError(f"gate {expression!r} holds {ast.unparse(node)!r}, neither a figure nor a number", hint=_GRAMMAR)


def _value(node: ast.expr, figures: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(operand=operand):
            return -_value(operand, figures)
        case ast.BinOp(left=left, op=operation, right=right):
            return _ARITHMETIC[type(operation)](_value(left, figures), _value(right, figures))
    return figures[ast.unparse(node)]
