"""The filter of API keys, called from Python: which keys it takes, and when it reads them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lupa.luajit21 as lupa
import pytest

from serving.front.bootstrap import key_source

KEYS = (b"first-key-0123456789", b"second-key-9876543210")

HANDLE = b"""function(get, remove, respond)
  local headers = { get = function(_, name) return get(name) end, remove = function(_, name) remove(name, nil) end }
  local ignored = { dynamicMetadata = function() return { set = function() end } end }
  return {
    headers = function() return headers end,
    respond = function() respond() end,
    streamInfo = function() return ignored end,
    logErr = function(_, message) error(message) end,
  }
end"""
"""What Envoy gives to the filter, with functions of the test."""


class KeyFilter:
    """The filter, with a clock that a test sets."""

    def __init__(self, path: Path) -> None:
        self.lua = lupa.LuaRuntime(encoding=None)
        self.lua.execute(b"now = 100; os.time = function() return now end")
        self._functions: Any = self.lua.execute(key_source(path).encode())

    def takes(self, key: bytes) -> bool:
        return bool(self._functions[b"is_valid"](key))

    def passed_on(self, headers: dict[str, bytes]) -> dict[str, bytes] | None:
        """What Triton gets of a request's headers; None: it gets nothing, because the request is refused."""
        left, refused = {name.encode(): value for name, value in headers.items()}, []
        handle = self.lua.eval(HANDLE)(left.get, left.pop, lambda *_: refused.append(True))
        self.lua.globals()[b"envoy_on_request"](handle)
        return None if refused else {name.decode(): value for name, value in left.items()}

    def wait(self) -> None:
        self.lua.execute(b"now = now + 1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_bytes(b"\n".join(KEYS))
    return path


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_taken_whole(path: Path, key: bytes) -> None:
    keys = KeyFilter(path)
    assert keys.takes(key)
    for other in (b"", key[:-1], key + b"0", key[:-1] + b"!", b"!" + key[1:], key.upper(), key * 2, b"\n", b"\n".join(KEYS)):
        assert not keys.takes(other), other


def test_the_file_is_read_again_once_a_second(path: Path) -> None:
    keys = KeyFilter(path)
    assert keys.takes(KEYS[0])
    path.write_bytes(KEYS[1])
    assert keys.takes(KEYS[0]), "it was read in this second"
    keys.wait()
    assert not keys.takes(KEYS[0]) and keys.takes(KEYS[1])
    path.unlink()
    keys.wait()
    assert keys.takes(KEYS[1]), "a file that is not there changes nothing"


def test_without_a_file_nobody_passes(tmp_path: Path) -> None:
    assert not KeyFilter(tmp_path / "nothing").takes(b"")


@pytest.mark.parametrize("kind", ["application/json", "application/grpc"])
def test_triton_does_not_get_the_key(path: Path, kind: str) -> None:
    keys, others = KeyFilter(path), {"content-type": kind.encode(), "x-request-id": b"7"}
    for own in ({"x-api-key": KEYS[0], "triton-grpc-protocol-x-api-key": KEYS[0]}, {"authorization": b"Bearer " + KEYS[0]}):
        assert keys.passed_on(others | own) == others
    assert keys.passed_on(others | {"triton-grpc-protocol-x-api-key": KEYS[0]}) is None, "it is no key of the front"
