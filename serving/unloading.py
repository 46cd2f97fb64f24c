"""Takes the models of a generation out of a running server, when their last request is answered."""

from __future__ import annotations

import time

from serving.errors import ServerError
from serving.model_control import ModelControl
from serving.model_names import pinned_model, step_models
from serving.released_models import ReleasedModels

DRAIN_SECONDS = 660.0
"""How long requests of a generation may take until its steps are unloaded, in seconds: as long as the front lets them."""
GRACE_SECONDS = 1.0
"""How long steps stay at least: somebody may be reading their statistics."""
UNLOAD_SECONDS = 60.0
"""How long Triton may take to unload a model that answers no request, in seconds."""


def unload_package(control: ModelControl, models: ReleasedModels, name: str, generation: str) -> None:
    """Unload the model that clients call, and the steps of its generation when its last request is answered.

    Raises:
        ServerError: A request is not answered in time, or Triton refused or did not answer.
    """
    models.leave(name, generation)
    time.sleep(GRACE_SECONDS)
    control.unload(name)
    end_generation(control, models, name, generation)
    models.drop(name, generation)


def unload_beside(control: ModelControl, models: ReleasedModels, name: str, generation: str) -> None:
    """Unload the ensemble of a generation that is loaded under its own name, and its steps unless clients call them.

    Raises:
        ServerError: It is not loaded, or Triton refused or did not answer.
    """
    loaded, pinned = control.loaded(), pinned_model(name, generation)
    answers = loaded.get(name) == generation
    own = {pinned} if answers else {pinned, *step_models(name, generation)}
    if not own & loaded.keys():
        if answers:
            problem = f"{pinned} is not loaded under its own name: it answers as {name}"
            raise ServerError(problem, hint=f"unload the whole model with: tritonize unload {name}")
        raise ServerError(f"{pinned} is not loaded", hint="see what is loaded with: tritonize status")
    end_beside(control, models, name, generation, answers=answers)


def end_beside(control: ModelControl, models: ReleasedModels, name: str, generation: str, *, answers: bool) -> None:
    """Unload what is loaded of a generation beside the model that clients call.

    Args:
        control: The server.
        models: The folder that it reads.
        name: Name of the package.
        generation: The generation.
        answers: Whether it also answers for its package. Then only the ensemble under its own name is unloaded.

    Raises:
        ServerError: A request is not answered in time, or Triton refused or did not answer.
    """
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


def end_generation(
    control: ModelControl, models: ReleasedModels, name: str, generation: str, *, unless_beside: bool = False
) -> bool:
    """Unload the models of a generation that does not answer for its package any more, after its last request is answered.

    Args:
        control: The server.
        models: The folder that it reads.
        name: Name of the package.
        generation: The generation.
        unless_beside: Whether it stays if clients can call its ensemble under its own name.

    Returns:
        Whether it is unloaded.

    Raises:
        ServerError: It still answers one after the longest time, and stays loaded. Or Triton refused or did not answer.
    """
    time.sleep(GRACE_SECONDS)
    _wait_answered(control, name, generation)
    if unless_beside and pinned_model(name, generation) in control.loaded():
        return False
    models.leave(name, generation)
    unload_generation(control, name, generation)
    return True


def unload_generation(control: ModelControl, name: str, generation: str) -> None:
    """Unload the ensemble of a generation, and its steps when its last request is answered, as far as they are loaded.

    Raises:
        ServerError: The ensemble still answers a request after the longest time, and its steps stay loaded. Or Triton refused, or
            did not answer.
    """
    loaded, pinned = control.loaded(), pinned_model(name, generation)
    if pinned in loaded:
        control.unload(pinned)
    _wait_answered(control, pinned, "1")
    steps = [step for step in step_models(name, generation) if step in loaded]
    for step in steps:
        control.unload(step)
    for step in steps:
        if not control.wait_unloaded(step, "1", seconds=UNLOAD_SECONDS):
            raise ServerError(f"{step} is still loaded after {UNLOAD_SECONDS:.0f} s")


def _wait_answered(control: ModelControl, model: str, version: str) -> None:
    if not control.wait_unloaded(model, version, seconds=DRAIN_SECONDS):
        raise ServerError(f"{model} {version} still answers a request after {DRAIN_SECONDS:.0f} s: its steps stay loaded")
