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

from serving.errors import ServerError, TritonizeError
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
        ServerError: The generation is broken. The server answers as before.
    """
    name, generation = manifest.name, manifest.generation
    served = control.loaded().get(name)
    if served == generation:
        return
    with _refused(control, models, manifest, served):
        _try(control, models, manifest, tell)
        models.choose(name, generation)
        if served is not None and is_single_model(manifest.layout):
            models.leave(name, served)  # Triton ends it as soon as the new one is loaded
        control.load(name)
        _check(control, manifest, name)
    tell(f"{name} answers with {generation}")
    if served is not None:
        _retire(control, models, name, served, tell)


def _try(control: ModelControl, models: ReleasedModels, manifest: RepositoryManifest, tell: Tell) -> None:
    """Load the models of a generation beside those that answer, and ask for the recorded answers."""
    name, generation = manifest.name, manifest.generation
    trial = models.add(manifest)
    if trial is None:
        return
    steps = () if is_single_model(manifest.layout) else step_models(name, generation)
    was_loaded = trial in control.loaded()
    for model in (*steps, trial):
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
    """Undo what was loaded if the block fails, so that the server answers as before.

    Raises:
        ServerError: The block failed, with the reason.
    """
    name, generation = manifest.name, manifest.generation
    try:
        yield
    except TritonizeError as error:
        left = ""
        try:
            answers = control.loaded().get(name) == generation
            if served is not None:
                models.choose(name, served)
            models.leave(name, generation)
            if answers and served is not None:
                control.load(name)
            elif answers:
                control.unload(name)
            unload_generation(control, name, generation)
            models.drop(name, generation)
        except TritonizeError as other:
            left = f"; what was loaded could not be unloaded: {other.message}"
        now = f"{name} answers with {served} as before" if served is not None else f"{name} is not served"
        raise ServerError(f"{name} {generation} is refused: {error.message}{left}; {now}", hint=error.hint) from error


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
