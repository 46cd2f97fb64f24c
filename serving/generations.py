"""The generations of a package: what each is called, how its files are arranged, and how it becomes the current one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from serving.artifact import MANIFEST, write_manifest
from serving.errors import ArtifactError
from serving.layout import (
    CONFIG,
    HISTORY,
    WARMUP,
    current_generation,
    generation_entries,
    generation_folder,
    generations,
    is_package,
)
from serving.manifests import RepositoryManifest
from serving.model_names import is_single_model, pinned_model, read_model_name
from serving.options import Layout
from serving.pbtxt import from_pbtxt, to_pbtxt
from serving.promotion_history import continued, read_history

_STAMP = "%Y%m%d%H%M%S"


def new_generation(repository: Path, name: str) -> str:
    """Return the name of a new generation: the time, or a second after the newest one where that is not over yet.

    What an interrupted packaging has left counts too.
    """
    of_models = [read_model_name(entry.name) for entry in generation_entries(repository, name)]
    warmups = [entry.name for entry in (repository / name / WARMUP).glob("*")]
    earlier = [*generations(repository, name), *(of.generation for of in of_models if of), *warmups]
    now = datetime.now(UTC)
    if earlier:
        now = max(now, datetime.strptime(max(earlier), _STAMP).replace(tzinfo=UTC) + timedelta(seconds=1))
    return now.strftime(_STAMP)


def newest_generation(repository: Path, name: str) -> str:
    """Return the newest generation of a package.

    Raises:
        ArtifactError: There is no such package.
    """
    found = generations(repository, name) if is_package(repository / name) else []
    if not found:
        raise ArtifactError(f"{repository} holds no package {name}", hint="see what it holds with: tritonize models")
    return found[-1]


def arrange(tree: Path, name: str, layout: Layout, generation: str) -> None:
    """Bring the models of a new generation into the places that they have in a repository.

    Args:
        tree: The folder of the models. It holds the ensemble of the generation and its steps; or a single model called ``name``,
            whose files are in the version 1.
        name: Name of the package.
        layout: Its layout.
        generation: The generation.
    """
    home, folder = tree / name, tree / name / generation
    if is_single_model(layout):
        (home / "1").rename(folder)
        if (home / WARMUP).is_dir():
            (home / WARMUP).rename(tree / WARMUP)
            (home / WARMUP).mkdir()
            (tree / WARMUP).rename(home / WARMUP / generation)
        (home / CONFIG).rename(folder / CONFIG)
        source = folder / CONFIG
    else:
        folder.mkdir(parents=True)
        source = tree / pinned_model(name, generation) / CONFIG
    config = from_pbtxt(source.read_text(encoding="utf-8"))
    config |= {"name": name, "version_policy": {"specific": {"versions": [int(generation)]}}}
    for warmup in config.get("model_warmup", []) if is_single_model(layout) else []:
        for tensor in warmup["inputs"].values():
            tensor["input_data_file"] = f"{generation}/{tensor['input_data_file']}"
    (folder / CONFIG).write_text(to_pbtxt(config), encoding="utf-8")


def seal(tree: Path, manifest: RepositoryManifest) -> RepositoryManifest:
    """Write the manifest of an arranged generation into its folder, and beside the ensemble of the generation.

    Args:
        tree: The folder of the models.
        manifest: The manifest without the checksums of the files.

    Returns:
        The complete manifest.
    """
    complete = write_manifest(tree, manifest)
    folder = generation_folder(tree, manifest.name, manifest.generation)
    (tree / MANIFEST).rename(folder / MANIFEST)
    if not is_single_model(manifest.layout):
        shutil.copyfile(folder / MANIFEST, tree / pinned_model(manifest.name, manifest.generation) / "1" / MANIFEST)
    return complete


def make_current(repository: Path, name: str, generation: str, staging: Path, *, history: Sequence[str] | None = None) -> None:
    """Make a generation the current one of its package, by renaming one file, after its history was written.

    Args:
        repository: The model repository.
        name: Name of the package.
        generation: One of its generations.
        staging: A folder on the same file system.
        history: The history of the package with this generation; None: the current one answered before.
    """
    if history is None:
        history = continued(read_history(repository, name), current_generation(repository, name), generation)
    (staging / HISTORY).write_text("".join(f"{chosen}\n" for chosen in history), encoding="utf-8")
    (staging / HISTORY).rename(repository / name / HISTORY)
    shutil.copyfile(generation_folder(repository, name, generation) / CONFIG, staging / CONFIG)
    (staging / CONFIG).rename(repository / name / CONFIG)
