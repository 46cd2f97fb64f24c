"""Finds the class of a checkpoint's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import ArtifactError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CLASS, FILES = "tokenizer_class", ("tokenizer_config.json", "config.json")


def fast_class(folder: Path) -> type[PreTrainedTokenizerFast] | None:
    """Return the class of this package that loads a checkpoint's tokenizer.

    Args:
        folder: The checkpoint. All of its JSON files can be parsed.

    Returns:
        The class; None: ``transformers`` itself has one.

    Raises:
        ArtifactError: There is only a slow tokenizer.
    """
    name = _class_name(folder)
    if name == "MarianTokenizer":
        from export.slow_tokenizers.marian import MarianTokenizerFast

        return MarianTokenizerFast
    if name == "M2M100Tokenizer":
        from export.slow_tokenizers.m2m100 import M2M100TokenizerFast

        return M2M100TokenizerFast
    if name is not None and not _has_fast_class(name):
        raise ArtifactError(
            f"the tokenizer of {folder} is a {name}, of which there is no fast form, and serving needs one",
            hint='if the folder has a tokenizer.json that tokenizes alike, set "tokenizer_class": "PreTrainedTokenizerFast" in its '
            "tokenizer_config.json",
        )
    return None


def _class_name(folder: Path) -> str | None:
    """Return the name of the class that ``AutoTokenizer`` would choose, without ``Fast``; None if it cannot be known."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    found: dict[str, object] = {}
    for file in FILES:
        content = json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).is_file() else {}
        if not isinstance(content, dict):
            return None
        if isinstance(named := content.get(CLASS), str):
            return named.removesuffix("Fast")
        found = content
    classes = TOKENIZER_MAPPING_NAMES.get(found.get("model_type"), ())
    return next((name.removesuffix("Fast") for name in reversed(classes) if name), None)


def _has_fast_class(name: str) -> bool:
    """Return whether ``transformers`` has the fast form of a class, or does not know the class at all."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    return tokenizer_class_from_name(f"{name}Fast") is not None or tokenizer_class_from_name(name) is None
