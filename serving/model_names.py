"""The names of the Triton models of a package.

Clients call the model that has the name of the package. The steps of an ensemble have the generation in their names, so that two
generations never share one: ``reviews.20261129133517_preprocess``. The ensemble of one generation can be called by its own name,
``reviews.20261129133517``, where it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from serving.options import Layout

STEPS = ("preprocess", "model", "postprocess")
SINGLE_MODEL_LAYOUTS: tuple[Layout, ...] = ("fused", "generation", "vllm")
GENERATION = re.compile(r"\d{14}")
"""The name of a generation: the time at which it was packaged, in UTC."""
_OF_A_GENERATION = re.compile(rf"(?P<name>.+)\.(?P<generation>{GENERATION.pattern})(?:_(?P<step>{'|'.join(STEPS)}))?")


@dataclass(frozen=True, kw_only=True)
class GenerationModel:
    """A model that belongs to one generation of an ensemble.

    Attributes:
        package: Name of the package.
        generation: The generation.
        step: The step; None for the ensemble of that generation.
    """

    package: str
    generation: str
    step: str | None


def read_model_name(model: str) -> GenerationModel | None:
    """Return what the name of a model of one generation says; None for other models."""
    found = _OF_A_GENERATION.fullmatch(model)
    return found and GenerationModel(package=found["name"], generation=found["generation"], step=found["step"])


def load_command(model: str) -> str:
    """Return the command that loads a model: of a model of one generation, the generation too."""
    found = read_model_name(model)
    return f"tritonize load {model}" if found is None else f"tritonize load {found.package} {found.generation}"


def is_single_model(layout: Layout) -> bool:
    """Return whether a package of this layout is one Triton model, which clients call themselves. Any other is an ensemble."""
    return layout in SINGLE_MODEL_LAYOUTS


def steps_of(layout: Layout) -> tuple[str, ...]:
    """Return the steps of a request, the first one first. A single model is the step ``model``, and does the work of all."""
    return ("model",) if is_single_model(layout) else STEPS


def pinned_model(name: str, generation: str) -> str:
    """Return the name of the ensemble of one generation."""
    return f"{name}.{generation}"


def step_models(name: str, generation: str) -> tuple[str, ...]:
    """Return the names of the steps of a generation of an ensemble, the first one first."""
    return tuple(f"{pinned_model(name, generation)}_{step}" for step in STEPS)


def callable_models(models: Iterable[str]) -> list[str]:
    """Return those of the models of a server that clients may call, sorted: all but the steps of ensembles."""
    return sorted(model for model in set(models) if (found := read_model_name(model)) is None or found.step is None)
