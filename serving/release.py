"""Brings a generation of a package into a running server, without a wrong answer and without a lost request.

The order is what makes it safe. The new steps are loaded one by one beside the old ones, so that one that cannot be loaded harms
nobody: Triton would unload an ensemble that answers if it were loaded anew with a broken step. The ensemble of the generation is
asked for the answers that packaging recorded. Then the model that clients call is loaded with the configuration of the new
generation, and asked again. The old steps are unloaded when the old version of that model has gone: Triton keeps it until its last
request is answered.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serving.errors import NoServerError, ServerError, TritonizeError
from serving.manifests import RepositoryManifest
from serving.model_control import ModelControl
from serving.model_names import is_single_model, pinned_model, step_models
from serving.probe import probes_of
from serving.released_models import ReleasedModels
from serving.trouble import Trouble
from serving.unloading import DRAIN_SECONDS, UNLOAD_SECONDS, end_beside, end_generation
from serving.writing import describe

Tell = Callable[[str], None]
PROBE_SECONDS = 60.0
"""Time limit of one probe: the server is under load."""


@dataclass(frozen=True, kw_only=True)
class _Change:
    """A generation that is to answer, and what was loaded before.

    Attributes:
        control: The server.
        models: The folder that it reads.
        manifest: The manifest of the generation.
        served: The generation that answered before; None if the package was not served.
        is_beside: Whether clients could call the generation under its own name before.
    """

    control: ModelControl
    models: ReleasedModels
    manifest: RepositoryManifest
    served: str | None
    is_beside: bool


def promote(control: ModelControl, models: ReleasedModels, manifest: RepositoryManifest, tell: Tell) -> None:
    """Let a running server answer with a generation, and make it the current one of the repository.

    Args:
        control: The server.
        models: The folder that it reads.
        manifest: The manifest of the generation, whose files have been checked.
        tell: Called with a line about each step.

    Raises:
        ServerError: The generation is broken. The server answers as before, unless the message says otherwise. Or the generation
            answers, and the repository could not be changed.
    """
    name, generation = manifest.name, manifest.generation
    loaded = control.loaded()
    served = loaded.get(name)
    if served == generation:
        _record(models, name, generation, served, tell)
        return
    models.begin(name, served)
    is_beside = pinned_model(name, generation) in loaded
    change = _Change(control=control, models=models, manifest=manifest, served=served, is_beside=is_beside)
    had_steps = served is not None and any(step in loaded for step in step_models(name, served))
    with _refused(change):
        _try(control, models, manifest, tell)
        models.choose(name, generation)
        if served is not None and not had_steps:
            models.leave(name, served)  # a single model, which Triton ends as soon as the new one is loaded
        control.load(name)
        _check(control, manifest, name)
    models.confirm()
    tell(f"{name} answers with {generation}")
    try:
        _record(models, name, generation, served, tell)
    finally:
        if served is not None:
            _retire(control, models, name, served, tell)


def _record(models: ReleasedModels, name: str, generation: str, before: str | None, tell: Tell) -> None:
    """Make a generation that answers the current one of the repository. One on a read-only file system stays as it is.

    Raises:
        ServerError: The repository cannot be changed for another reason.
    """
    later = f"a server that is started later may not serve {generation} of {name}, and rollback may not go back from it"
    try:
        models.record(name, generation, before)
    except OSError as error:
        if error.errno != errno.EROFS:
            hint = f"mend that, and run again: tritonize promote {name} {generation}"
            raise ServerError(f"{name} answers with {generation}, but {describe(error)}: {later}", hint=hint) from error
        tell(f"warning: {describe(error)}: {later}")


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
        control.wait_unloaded(trial, "1", seconds=UNLOAD_SECONDS)


def _check(control: ModelControl, manifest: RepositoryManifest, model: str) -> None:
    for probe in probes_of(manifest, model, all_texts=True):
        control.check(probe, seconds=PROBE_SECONDS)


@contextlib.contextmanager
def _refused(change: _Change) -> Iterator[None]:
    """Undo what was loaded if the block fails or is interrupted, so that the server answers as before.

    Raises:
        ServerError: The block failed, with the reason. An error that nobody expects is raised as it is.
    """
    name, served = change.manifest.name, change.served
    try:
        yield
    except BaseException as error:
        trouble = _undo(change)
        now = f"{name} answers with {served} as before" if served is not None else f"{name} is not served"
        if trouble.has_no_server or (isinstance(error, NoServerError) and not trouble):
            now = after_restart(name, served)
        elif trouble:
            now = f"it was not undone completely: {trouble}"
        if not isinstance(error, TritonizeError):
            error.add_note(now)
            raise
        hint = "see what answers with: tritonize status" if trouble else error.hint
        generation, problem = change.manifest.generation, "is refused"
        if isinstance(error, NoServerError):  # the generation need not be broken
            problem, hint = (
                "does not answer: the server ended meanwhile",
                f"promote it again with: tritonize promote {name} {generation}",
            )
        raise ServerError(f"{name} {generation} {problem}: {error.message}; {now}", hint=hint) from error


def after_restart(name: str, served: str | None) -> str:
    """Say what a server that has ended answers with when it has been restarted; None: it does not serve the package."""
    return f"after its restart, the server {f'answers with {served}' if served is not None else f'does not serve {name}'}"


def _undo(change: _Change) -> Trouble:
    """Choose and load what answered before. Each part is done also where another one fails.

    What clients could call under its own name before stays. So does a generation that goes on answering because the one from before
    could not be chosen: to load the model again would load the same one.

    Returns:
        What could not be done.
    """
    control, models = change.control, change.models
    name, generation = change.manifest.name, change.manifest.generation
    trouble = Trouble()
    stays = change.is_beside
    with trouble.noted():
        models.restore(name, change.served)  # first: a restart serves what is chosen, also where Triton has died
    is_restored = not trouble
    models.leave(name, generation)
    with trouble.noted():
        control.wait_loaded(name, generation, seconds=PROBE_SECONDS)
        answers = control.loaded().get(name) == generation
        if answers and change.served is not None and not is_restored:
            stays = True
            raise ServerError(f"{name} answers with {generation}")
        if answers and change.served is not None:
            control.load(name)
        elif answers:
            control.unload(name)
        if not stays:
            end_generation(control, models, name, generation)
        elif answers and is_single_model(change.manifest.layout):
            control.wait_unloaded(name, generation, seconds=DRAIN_SECONDS)  # its processes are not watched until it has gone
    with trouble.noted():
        if stays:
            models.add(change.manifest)  # watched as before
        else:
            models.drop(name, generation)
    return trouble


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
        trouble = Trouble()
        if pinned_model(name, generation) not in loaded:  # else it stays, as before
            with trouble.noted():
                end_beside(control, models, name, generation, answers=loaded[name] == generation)
        if trouble and not (isinstance(error, NoServerError) and trouble.has_no_server):  # then nothing is loaded
            error.add_note(f"what was loaded could not be unloaded: {trouble}")
            if isinstance(error, TritonizeError):
                hint = "see what is loaded with: tritonize status"
                unloaded = f"what was loaded could not be unloaded: {trouble}"
                raise ServerError(f"{error.message}; {unloaded}", hint=hint) from error
        raise
    models.confirm()


def _steps(manifest: RepositoryManifest) -> tuple[str, ...]:
    return () if is_single_model(manifest.layout) else step_models(manifest.name, manifest.generation)


def _retire(control: ModelControl, models: ReleasedModels, name: str, served: str, tell: Tell) -> None:
    """Unload the generation that answered before, unless somebody has loaded its ensemble to call it.

    The new one answers already. So a failure is told, and is no error.
    """
    trouble = Trouble()
    with trouble.noted():
        if not end_generation(control, models, name, served, unless_beside=True):
            tell(f"{pinned_model(name, served)} stays loaded: unload it with: tritonize unload {name} {served}")
            return
        models.drop(name, served)
        tell(f"{name} {served} is unloaded")
    if trouble:
        tell(f"warning: {name} {served} is not unloaded: {trouble}")
