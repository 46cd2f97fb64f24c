"""A stand-in for Triton, and for what a supervisor keeps, for tests of releases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest

from serving import release_target, releases, unloading
from serving.control_socket import ReleaseRequest
from serving.errors import NoServerError
from serving.layout import current_generation, generations
from serving.probe import Probe
from serving.readiness import Readiness
from serving.releases import Releases
from serving.served_view import ServedView


class StandIn:
    """A Triton that loads whatever a folder holds, and fails where a test says so. It is also its own control.

    Attributes:
        folder: The folder that it reads.
        versions: The version of each model that is loaded.
        calls: What was loaded and unloaded, and what else a test notes.
        fails: Called with each action and model; raises what is to fail.
        busy: Versions of models that never answer their last request.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions: dict[str, str] = {}
        self.calls: list[tuple[str, ...]] = []
        self.fails: Callable[[str, str], None] = lambda *_: None
        self.busy: set[tuple[str, str]] = set()
        self.is_dead = False

    def __call__(self, *_: object) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def _do(self, action: str, model: str) -> None:
        if not self.is_dead:
            self.fails(action, model)
        if self.is_dead:
            raise NoServerError(f"{action} {model}: no server answers")
        self.calls.append((action, model))

    def load(self, model: str) -> None:
        self._do("load", model)
        self.versions[model] = current_generation(self.folder, model) or "1"

    def unload(self, model: str) -> None:
        self._do("unload", model)
        del self.versions[model]

    def loaded(self) -> dict[str, str]:
        self._do("list", "")
        return dict(self.versions)

    def wait_unloaded(self, model: str, version: str, **_: float) -> bool:
        self._do("drain", model)
        return self.versions.get(model) != version and (model, version) not in self.busy

    def wait_loaded(self, model: str, *_: str, **__: float) -> bool:
        self._do("wait", model)
        return True

    def check(self, probe: Probe, **_: float) -> None:
        self._do("check", probe.ensemble)


class Kept:
    """What a supervisor keeps, without its processes."""

    def __init__(self, view: ServedView, triton: StandIn) -> None:
        self.view = view
        self.record: dict[str, object] = {}
        self.readiness = Readiness()
        self.readiness.begin(["one"], view.left_out)
        self.releases = Releases(view, self.readiness, SimpleNamespace(update=self.record.update))
        self.stubs_watched = 0
        self.server = SimpleNamespace(
            address=SimpleNamespace(grpc=""),
            probes=[],
            on_trial=set(),
            watch_stubs=self.watch,
            remove_weights=lambda: None,
            expect=lambda *models: triton.calls.append(("expect", *models)),
            stop_watching=lambda *models: triton.calls.append(("leave", *models)),
        )
        self.releases.server = self.server

    def watch(self) -> None:
        self.stubs_watched += 1

    def ask(self, action: str, name: str, generation: str = "", tell: Callable[[str], None] = print) -> None:
        self.releases.handle(ReleaseRequest(action=action, name=name, generation=generation), tell)  # type: ignore[arg-type]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Let the release commands meet a stand-in that reads a folder."""
    made = StandIn(folder)
    monkeypatch.setattr(releases, "ModelControl", made)
    monkeypatch.setattr(release_target, "ModelControl", made)
    monkeypatch.setattr(unloading, "GRACE_SECONDS", 0)
    return made


def start(triton: StandIn, models: Path, name: str, layout: str = "ensemble") -> str:
    """Let the stand-in have loaded what a package is now."""
    generation = generations(models, name)[-1]
    steps = ("preprocess", "model", "postprocess") if layout == "ensemble" else ()
    triton.versions |= {name: generation} | {f"{name}.{generation}_{step}": "1" for step in steps}
    return generation
