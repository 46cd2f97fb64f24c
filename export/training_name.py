"""The name of a model that is fine-tuned, where the user gives none."""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path

from export.finetune_options import FinetuneOptions
from export.sources import HUB
from serving.naming import as_model_name, tell_name
from serving.records import belongs_to_split


def named_for_training(options: FinetuneOptions, from_recipe: str | None = None) -> FinetuneOptions:
    """Fill in the name of the model if the user gave none: that of the recipe file, or else of the training rows.

    Args:
        options: Options of the stage.
        from_recipe: The name after the recipe file.
    """
    if options.name:
        return options
    if from_recipe is not None:
        return replace(options, name=tell_name(from_recipe, "the recipe"))
    return replace(options, name=tell_name(name_of_rows(options.train), "its training rows"))


def name_of_rows(location: str) -> str:
    """Return the name of a data set: of its file, or of the folder where the file is named after a split or is a pattern.

    Args:
        location: The location, as for ``--train``.
    """
    if location.startswith((HUB, "quickstart:")):
        data_set = location.removeprefix(HUB).removeprefix("quickstart:").partition(":")[0]
        return as_model_name(data_set.rstrip("/").rpartition("/")[2])
    path = Path(location).absolute()
    while path.name and (glob.has_magic(path.name) or belongs_to_split(path)):
        path = path.parent
    return as_model_name(path.name if path.is_dir() else path.name.partition(".")[0])
