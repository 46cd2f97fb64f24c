"""What a repository holds of each package, and what a server serves of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from serving.errors import ArtifactError
from serving.integrity import LISTED_BYTES, check_generation
from serving.layout import current_generation, generations, package_names
from serving.manifests import RepositoryManifest, VariantFigures
from serving.model_names import pinned_model, step_models
from serving.server_record import Running

State = Literal["answers", "loaded", "stored", "unknown", "damaged"]


@dataclass(frozen=True, kw_only=True)
class GenerationStatus:
    """A generation of a package.

    Attributes:
        name: Name of the package.
        generation: The generation.
        is_current: Whether a server that is started now serves it.
        state: ``answers``: clients get its answers; ``loaded``: it is loaded under its own name; ``stored``: it is not loaded;
            ``unknown``: the server does not say what is loaded; ``damaged``: it cannot be loaded.
        created: When it was packaged; None if its manifest cannot be read. So are the next two.
        kind: Precision, device and layout.
        figures: Figures of its variant by name.
        problem: Why it is damaged.
    """

    name: str
    generation: str
    is_current: bool
    state: State
    created: datetime | None = None
    kind: str = ""
    figures: Mapping[str, float | None]
    problem: str = ""


def recorded_models(repository: Path, running: Running) -> dict[str, str]:
    """Return what a server answers with by its record: the generation of each package."""
    served = {name: running.generation_of(repository, name) for name in package_names(repository)}
    return {name: folder.name for name, folder in served.items() if folder is not None}


def take_status(repository: Path, loaded: Mapping[str, str] | None) -> list[GenerationStatus]:
    """Return the generations of all packages in a repository, the newest of each first.

    Args:
        repository: The model repository.
        loaded: The version of each model that a server has loaded; empty without a server; None if that is not known.
    """
    return [
        _status(repository, name, generation, loaded)
        for name in package_names(repository)
        for generation in reversed(generations(repository, name))
    ]


def _status(repository: Path, name: str, generation: str, loaded: Mapping[str, str] | None) -> GenerationStatus:
    is_current = current_generation(repository, name) == generation
    state: State = "unknown" if loaded is None else _state(name, generation, loaded)
    try:
        manifest = check_generation(repository, name, generation, largest=LISTED_BYTES)
    except (ArtifactError, OSError) as error:
        state = "damaged" if state in ("stored", "unknown") else state
        return GenerationStatus(
            name=name, generation=generation, is_current=is_current, state=state, figures={}, problem=str(error)
        )
    return GenerationStatus(
        name=name,
        generation=generation,
        is_current=is_current,
        state=state,
        created=manifest.created,
        kind=f"{manifest.precision} on {manifest.device}, {manifest.layout}",
        figures=_figures(manifest),
    )


def _state(name: str, generation: str, loaded: Mapping[str, str]) -> State:
    if loaded.get(name) == generation:
        return "answers"
    models = (pinned_model(name, generation), *step_models(name, generation))
    return "loaded" if any(model in loaded for model in models) else "stored"


def _figures(manifest: RepositoryManifest) -> dict[str, float | None]:
    """Return how much a variant agrees with the original, and its metrics; nothing where the checkpoint itself is served."""
    figures = manifest.bundle.figures
    if figures is None:
        return {}
    if isinstance(figures, VariantFigures):
        return {"label_agreement": figures.label_agreement, **figures.metrics}
    return {"next_token_agreement": figures.next_token_agreement, **figures.metrics}
