"""Brings a packaged generation into its place in a model repository (see ``serving.repository``)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from serving.errors import ArtifactError
from serving.generations import make_current
from serving.integrity import refuse_planted
from serving.layout import CONFIG, current_generation, earlier_entries, generation_folder, generation_folders, is_package
from serving.model_names import read_model_name
from serving.options import Layout


def refuse_foreign(repository: Path, name: str) -> None:
    """Check that a package can have a name.

    Args:
        repository: The model repository.
        name: Name of the package.

    Raises:
        ArtifactError: The name is one that models of generations have, or belongs to a model that tritonize did not write, or there
            is something else in the folder of the package.
    """
    if read_model_name(name) is not None:
        raise ArtifactError(f"{name} ends like the model of a generation", hint="choose a --name without a number of 14 digits")
    home = repository / name
    if is_package(home):
        refuse_planted(home)
    elif os.path.lexists(home) and home not in earlier_entries(repository, name):
        raise ArtifactError(f"{home} exists and was not packaged by tritonize", hint="choose another --name, or move it away")


def staging_root(repository: Path) -> Path:
    """Return a folder to write in: beside the repository, or inside it if it is a file system of its own (a mounted volume)."""
    parent = repository.absolute().parent
    same = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    return parent if same else repository


def place(repository: Path, tree: Path, name: str, layout: Layout, generation: str, *, current: bool = True) -> None:
    """Move a new generation into a repository, and make it the current one unless the package keeps the one that it has.

    What clients call comes last. In a package that is there already, that is one rename of one file.

    Args:
        repository: The model repository.
        tree: The folder with the generation, as :func:`serving.generations.arrange` leaves it, in a staging folder on the same file
            system.
        name: Name of the package.
        layout: Its layout.
        generation: The generation.
        current: Whether it becomes the current one, too, where the package has another one.
    """
    home = repository / name
    for entry in earlier_entries(repository, name):
        entry.unlink() if entry.is_symlink() else entry.rename(tree.parent / f"earlier-{entry.name}")
    folders = [folder for folder in generation_folders(name, layout, generation) if (tree / folder).is_dir()]
    if is_package(home):
        for folder in folders:
            (repository / folder).parent.mkdir(exist_ok=True)
            (tree / folder).rename(repository / folder)
        if current or current_generation(repository, name) is None:
            make_current(repository, name, generation, tree.parent)
        return
    shutil.copyfile(generation_folder(tree, name, generation) / CONFIG, tree / name / CONFIG)
    for folder in folders:
        if not folder.startswith(f"{name}/"):
            (tree / folder).rename(repository / folder)
    (tree / name).rename(home)
