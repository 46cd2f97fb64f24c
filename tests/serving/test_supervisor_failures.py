"""What a supervisor does when a part of itself fails. Stand-ins take the place of Triton and of the front."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest

from serving import supervisor
from serving.errors import ServerError
from serving.front import Front
from serving.readiness import Readiness
from serving.supervisor import Supervisor


class StandIn:
    """A Triton that is ready at once and never fails."""

    failed_by_chance = False

    def __init__(self, *_: object, **__: object) -> None:
        """Nothing is started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing has to be ended."""

    def wait_until_ready(self, _: object) -> None:
        """It is."""

    def failure(self) -> None:
        """There is none."""

    def drain(self) -> None:
        """Nothing is in flight."""


class Scene:
    """A supervisor, and what fails in it.

    Attributes:
        fails: Where it fails, called with the number of the server, from 1 on.
        seen: At each start, which server releases are sent to, whether the record says that it is ready, and whether the front is
            open.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: str, error: BaseException, *, at: tuple[int, ...] = (1,)) -> None:
        self.started, self.is_open, self.announced = 0, False, 0
        self.record: dict[str, object] = {}
        self.seen: list[tuple[object, object, bool]] = []
        self.releases = SimpleNamespace(server=None, none_under_way=contextlib.nullcontext)
        self._part, self._error, self._at = part, error, at
        view = SimpleNamespace(left_out={}, folder=Path(), refresh=lambda: None, differences=list)
        self.readiness = Readiness()
        monkeypatch.setattr(supervisor, "TritonServer", self.start)
        monkeypatch.setattr(supervisor, "find_probes", lambda _: [])
        monkeypatch.setattr(supervisor, "ServerHealth", self.watch)
        monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.001)
        monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.001)
        self.supervisor = Supervisor(
            SimpleNamespace(drain_seconds=0.0),  # type: ignore[arg-type]
            view,  # type: ignore[arg-type]
            self.front(),
            SimpleNamespace(update=lambda **changes: self.record.update(changes)),  # type: ignore[arg-type]
            self.readiness,
            self.releases,  # type: ignore[arg-type]
            on_ready=self.announce,
        )

    def announce(self, _: object) -> None:
        self.announced += 1

    def start(self, *_: object, **__: object) -> StandIn:
        self.seen.append((self.releases.server, self.record.get("ready", False), self.is_open))
        self.started += 1
        self.fail("start")
        return StandIn()

    def watch(self, *_: object) -> object:
        self.fail("watch")
        return SimpleNamespace(close=lambda: None, failure=lambda: None)

    def fail(self, part: str) -> None:
        if part == self._part and self.started in self._at:
            raise self._error

    def front(self) -> Front:
        scene = self

        class Opened(Front):
            triton = None  # type: ignore[assignment]

            def open(self) -> None:
                scene.is_open = True
                scene.fail("open")

            def close(self) -> None:
                scene.is_open = False

            def revive(self) -> None:
                scene.fail("revive")

        return Opened()

    def run(self, stopped: Callable[[], bool]) -> None:
        self.supervisor.run(stopped)  # type: ignore[arg-type]


PARTS = ("open", "revive", "watch")
TOO_MANY_THREADS = RuntimeError("can't start new thread")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "error", [ServerError("it does not obey"), OSError(28, "disk full"), RuntimeError("can't start new thread")]
)
def test_it_starts_another_server_whatever_fails(
    part: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Meanwhile releases know of no server, and the front is closed."""
    scene = Scene(monkeypatch, part, error, at=(2,))
    polls = iter(range(1, 1000))

    def ends(*_: object) -> str | None:
        """Let the first server end, so that the second one fails after the announcement."""
        return "ended" if scene.started == 1 else None

    monkeypatch.setattr(StandIn, "failure", ends)
    monkeypatch.setattr(StandIn, "fail", lambda *_: None, raising=False)
    scene.run(lambda: scene.started == 3 and next(polls) > 5)
    assert scene.started == 3 and scene.announced == 1
    assert scene.seen == [(None, False, False)] * 3
    assert scene.releases.server is None and scene.record["ready"] is False
    assert ("Traceback" in caplog.text) == isinstance(error, RuntimeError)
    assert str(getattr(error, "strerror", error)) in caplog.text


def test_what_cannot_be_started_is_tried_again_with_a_pause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(monkeypatch, "start", TOO_MANY_THREADS, at=(2, 3, 4))
    monkeypatch.setattr(StandIn, "failure", lambda _: "ended" if scene.started == 1 else None)
    monkeypatch.setattr(StandIn, "fail", lambda *_: None, raising=False)
    polls = iter(range(1, 1000))
    scene.run(lambda: scene.started == 5 and next(polls) > 5)
    assert scene.started == 5
    assert "can't start new thread; restarting in 0.002 s (3 starts have failed in a row)" in caplog.text


@pytest.mark.parametrize("part", ["start", "open"])
def test_a_first_start_that_fails_ends_it(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, part, TOO_MANY_THREADS)
    with pytest.raises(RuntimeError, match="new thread"):
        scene.run(lambda: False)
    assert scene.started == 1 and not scene.announced
    assert scene.releases.server is None and not scene.record.get("ready", False)
