"""Brings a generation of a package into a running server, without a wrong answer and without a lost request.

The order is what makes it safe. The new steps are loaded one by one beside the old ones, so that one that cannot be loaded harms
nobody: Triton would unload an ensemble that answers if it were loaded anew with a broken step. The ensemble of the generation is
asked for the answers that packaging recorded. Then the model that clients call is loaded with the configuration of the new
generation, and asked again. The old steps are unloaded when the old version of that model has gone: Triton keeps it until its last
request is answered.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from serving.errors import ServerError, TritonizeError, first_line
from serving.manifests import RepositoryManifest
from serving.model_control import ModelControl
from serving.model_names import is_single_model, pinned_model, step_models
from serving.probe import probes_of

Tell = Callable[[str], None]
PROBE_SECONDS = 60.0
"""Time limit of one probe: the server is under load."""
DRAIN_SECONDS = 660.0
"""How long requests of the old generation may take until its steps are unloaded, in seconds: as long as the front lets them."""
GRACE_SECONDS = 1.0
"""How long the old steps stay at least: somebody may be reading their statistics."""


class ReleasedModels(Protocol):
    """The folder from which a server reads its models, and what else must know which generation is served."""

    def add(self, manifest: RepositoryManifest) -> str | None:
        """Let the server load the models of a generation.

        Returns:
            The model that can be asked before clients get its answers; None if there is none.
        """

    def choose(self, name: str, generation: str) -> None:
        """Make a generation the one that is loaded under the name of its package."""

    def confirm(self) -> None:
        """Note that what is loaded now has given the recorded answers."""

    def leave(self, name: str, generation: str) -> None:
        """Note that the models of a generation end now, on purpose."""

    def drop(self, name: str, generation: str) -> None:
        """Forget a generation that is not loaded any more."""


def promote(control: ModelControl, models: ReleasedModels, manifest: RepositoryManifest, tell: Tell) -> None:
    """Let a running server answer with a generation.

    Args:
        control: The server.
        models: The folder that it reads.
        manifest: The manifest of the generation, whose files have been checked.
        tell: Called with a line about each step.

    Raises:
        ServerError: The generation is broken. The server answers as before, unless the message says otherwise.
    """
    name, generation = manifest.name, manifest.generation
    loaded = control.loaded()
    served = loaded.get(name)
    if served == generation:
        return
    had_steps = served is not None and any(step in loaded for step in step_models(name, served))
    with _refused(control, models, manifest, served):
        _try(control, models, manifest, tell)
        models.choose(name, generation)
        if served is not None and not had_steps:
            models.leave(name, served)  # a single model, which Triton ends as soon as the new one is loaded
        control.load(name)
        _check(control, manifest, name)
    models.confirm()
    tell(f"{name} answers with {generation}")
    if served is not None:
        _retire(control, models, name, served, tell)


def _try(control: ModelControl, models: ReleasedModels, manifest: RepositoryManifest, tell: Tell) -> None:
    """Load the models of a generation beside those that answer, and ask for the recorded answers."""
    trial = models.add(manifest)
    if trial is None:
        return
    was_loaded = trial in control.loaded()
    for model in (*_steps(manifest), trial):
        control.load(model)
    _check(control, manifest, trial)
    tell(f"{trial} gives the recorded answers")
    if not was_loaded:  # else somebody wants to call it
        models.leave(trial, "1")
        control.unload(trial)
        control.wait_unloaded(trial, "1", seconds=PROBE_SECONDS)


def _check(control: ModelControl, manifest: RepositoryManifest, model: str) -> None:
    for probe in probes_of(manifest, model, all_texts=True):
        control.check(probe, seconds=PROBE_SECONDS)


@contextlib.contextmanager
def _refused(control: ModelControl, models: ReleasedModels, manifest: RepositoryManifest, served: str | None) -> Iterator[None]:
    """Undo what was loaded if the block fails or is interrupted, so that the server answers as before.

    Raises:
        ServerError: The block failed, with the reason. An error that nobody expects is raised as it is.
    """
    name = manifest.name
    try:
        yield
    except BaseException as error:
        trouble = _undo(control, models, manifest, served)
        now = f"{name} answers with {served} as before" if served is not None else f"{name} is not served"
        if trouble:
            now = f"it was not undone completely: {'; '.join(trouble)}"
        if not isinstance(error, TritonizeError):
            error.add_note(now)
            raise
        hint = "see what answers with: tritonize status" if trouble else error.hint
        raise ServerError(f"{name} {manifest.generation} is refused: {error.message}; {now}", hint=hint) from error


def _undo(control: ModelControl, models: ReleasedModels, manifest: RepositoryManifest, served: str | None) -> list[str]:
    """Choose and load what answered before. Each part is done also where another one fails.

    Returns:
        What could not be done.
    """
    name, generation = manifest.name, manifest.generation
    trouble: list[str] = []
    if served is not None:
        with _noted(trouble):
            models.choose(name, served)  # first: a restart serves what is chosen, also where Triton has died
    models.leave(name, generation)
    with _noted(trouble):
        control.wait_loaded(name, generation, seconds=PROBE_SECONDS)
        if control.loaded().get(name) == generation:
            if served is not None:
                control.load(name)
            else:
                control.unload(name)
        unload_generation(control, name, generation)
    with _noted(trouble):
        models.drop(name, generation)
    return trouble


@contextlib.contextmanager
def _noted(trouble: list[str]) -> Iterator[None]:
    """Note why the block failed, and go on."""
    try:
        yield
    except (TritonizeError, OSError) as error:
        trouble.append(first_line(error))


def load_generation(control: ModelControl, models: ReleasedModels, manifest: RepositoryManifest, tell: Tell) -> None:
    """Load the ensemble of a generation under its own name, or a package that is not served under its name.

    Args:
        control: The server.
        models: The folder that it reads.
        manifest: The manifest of the generation, whose files have been checked.
        tell: Called with a line about each step.

    Raises:
        ServerError: The generation is broken. It is unloaded again.
    """
    name, generation = manifest.name, manifest.generation
    loaded = control.loaded()
    if name not in loaded:
        promote(control, models, manifest, tell)
        return
    try:
        trial = models.add(manifest)
        if trial is None:
            raise ServerError(f"{name} is served, and is one model: another generation of it cannot be loaded beside it")
        for model in (*_steps(manifest), trial):
            control.load(model)
        _check(control, manifest, trial)
    except BaseException as error:
        trouble: list[str] = []
        if pinned_model(name, generation) not in loaded:  # else it stays, as before
            with _noted(trouble):
                _unload_beside(control, models, name, generation, answers=loaded[name] == generation)
        if trouble:
            error.add_note(f"what was loaded could not be unloaded: {trouble[0]}")
            if isinstance(error, TritonizeError):
                hint = "see what is loaded with: tritonize status"
                raise ServerError(f"{error.message}; what was loaded could not be unloaded: {trouble[0]}", hint=hint) from error
        raise
    models.confirm()
    tell(f"{trial} is loaded")


def unload_beside(control: ModelControl, models: ReleasedModels, name: str, generation: str, tell: Tell) -> None:
    """Unload the ensemble of a generation that is loaded under its own name, and its steps unless clients call them.

    Raises:
        ServerError: It is not loaded, or Triton refused or did not answer.
    """
    loaded, pinned = control.loaded(), pinned_model(name, generation)
    answers = loaded.get(name) == generation
    own = {pinned} if answers else {pinned, *step_models(name, generation)}
    if not own & loaded.keys():
        raise ServerError(f"{pinned} is not loaded", hint="see what is loaded with: tritonize status")
    _unload_beside(control, models, name, generation, answers=answers)
    tell(f"{pinned} is unloaded")


def _unload_beside(control: ModelControl, models: ReleasedModels, name: str, generation: str, *, answers: bool) -> None:
    pinned = pinned_model(name, generation)
    models.leave(pinned, "1")
    if answers:
        if pinned in control.loaded():
            control.unload(pinned)
        return
    models.leave(name, generation)
    try:
        unload_generation(control, name, generation)
    finally:
        models.drop(name, generation)


def _steps(manifest: RepositoryManifest) -> tuple[str, ...]:
    return () if is_single_model(manifest.layout) else step_models(manifest.name, manifest.generation)


def unload_generation(control: ModelControl, name: str, generation: str) -> None:
    """Unload the ensemble of a generation and its steps, as far as they are loaded.

    Raises:
        ServerError: Triton refused or did not answer.
    """
    loaded = control.loaded()
    models = [model for model in (pinned_model(name, generation), *step_models(name, generation)) if model in loaded]
    for model in models:
        control.unload(model)
    for model in models:
        control.wait_unloaded(model, "1", seconds=PROBE_SECONDS)


def _retire(control: ModelControl, models: ReleasedModels, name: str, served: str, tell: Tell) -> None:
    """Unload the steps of the generation that answered before, unless somebody has loaded its ensemble to call it."""
    time.sleep(GRACE_SECONDS)
    if not control.wait_unloaded(name, served, seconds=DRAIN_SECONDS):
        tell(f"{name} {served} still answers a request after {DRAIN_SECONDS:.0f} s: its steps stay loaded")
        return
    if pinned_model(name, served) in control.loaded():
        tell(f"{pinned_model(name, served)} stays loaded with its steps")
        return
    models.leave(name, served)
    unload_generation(control, name, served)
    models.drop(name, served)
    tell(f"{name} {served} is unloaded")


def unload_package(control: ModelControl, models: ReleasedModels, name: str, generation: str) -> None:
    """Unload the model that clients call, and the steps of its generation when its last request is answered.

    Raises:
        ServerError: Triton refused or did not answer.
    """
    models.leave(name, generation)
    time.sleep(GRACE_SECONDS)
    control.unload(name)
    control.wait_unloaded(name, generation, seconds=DRAIN_SECONDS)
    unload_generation(control, name, generation)
    models.drop(name, generation)
