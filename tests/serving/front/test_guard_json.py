"""The filter decodes JSON and UTF-8 as Python does, or refuses."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.serving.front.guard_in_python import (
    MIXED,
    Guard,
    RefusedError,
    mutated,
    random_text,
)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        " [ ] ",
        '{"a":1}',
        '{"a":{"b":[1,2,{"c":null}]}, "d":[true,false]}',
        '"\\u00e9\\ud83d\\ude00\\n\\/\\"\\\\"',
        "-0.5e-3",
        "0",
        "1E+2",
        "123456789012345678",
        "4503599627370495",
        "-1",
        json.dumps(MIXED),
        json.dumps(MIXED, ensure_ascii=False),
        "[[[[]]],\t\r\n 1]",
        '{"":{"":""}}',
        '"\x7f"',
        "[" * 64 + "]" * 64,
    ],
)
def test_json_is_decoded_as_python_decodes_it(guard: Guard, text: str) -> None:
    assert is_same(guard.python(guard.call("decode", text.encode())[0]), json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b'{"a":1,}',
        b"{,}",
        b"[1 2]",
        b'{"a" 1}',
        b"{1:2}",
        b"01",
        b"-",
        b"1.",
        b".5",
        b"1e",
        b"1e+",
        b"+1",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"tru",
        b"nul",
        b'"',
        b'"a',
        b'"\\',
        b'"\\"',
        b'"\\x"',
        b'"\\u12"',
        b'"\\u12g4"',
        b'"\\ud800"',
        b'"\\ud800\\u0041"',
        b'"\\udc00"',
        b'"\n"',
        b'"\0"',
        b"[1]]",
        b"1 1",
        b"\xff",
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        b'"\xf4\x90\x80\x80"',
        b'"\xe2\x82"',
        b"\xef\xbb\xbf{}",
        b"'a'",
        b"/**/1",
        b'{"a":1 "b":2}',
        b"[" * 65 + b"]" * 65,
        b'{"a":1,"a":2}',
        b'{"a":1,"\\u0061":2}',
        b'{"a\\u0000":1}',
        b"[" * 100_000,
        b"[" + b"1," * 200_000 + b"1]",
    ],
)
def test_what_is_not_json_is_refused(guard: Guard, text: bytes) -> None:
    with pytest.raises(RefusedError, match="the body"):
        guard.call("decode", text)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 5 else 6)
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    if kind == 7:
        return {random_text(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(5))}
    return rng.choice(
        [None, True, False, rng.randrange(-(2**53), 2**53), rng.uniform(-1e6, 1e6), random_text(rng), 10 ** rng.randrange(-30, 30)]
    )


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, (int, float)) and not isinstance(one, bool) and isinstance(other, (int, float)):
        return bool(one == pytest.approx(other, rel=1e-9, abs=1e-300, nan_ok=True))
    return type(one) is type(other) and bool(one == other)


def test_random_json_is_decoded_as_python_decodes_it(guard: Guard) -> None:
    rng = random.Random(1)
    accepted = 0
    for _ in range(1500):
        value = random_value(rng)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 2])).encode()
        assert is_same(guard.python(guard.call("decode", text)[0]), value), text
        damaged = mutated(rng, text)
        try:
            decoded = guard.python(guard.call("decode", damaged)[0])
        except RefusedError:
            continue
        accepted += 1
        assert is_same(decoded, json.loads(damaged)), damaged
    assert accepted > 50


def test_utf8_is_what_python_says(guard: Guard) -> None:
    rng = random.Random(2)
    for _ in range(5000):
        text = mutated(rng, random_text(rng).encode())
        assert guard.call("is_utf8", text)[0] == (text.decode(errors="replace").encode() == text), text
