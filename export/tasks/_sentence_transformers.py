"""Reads and writes the JSON files that sentence-transformers keeps beside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

from export.tasks._pooling import CLS, LAST, MAX, MEAN, POOLINGS
from serving.runtime.types import JsonValue

MODULES, LIBRARY_FILE = "modules.json", "config_sentence_transformers.json"
TRANSFORMER_FILE, TRANSFORMER_FILES = "sentence_bert_config.json", "sentence_*_config.json"
FILES = (MODULES, TRANSFORMER_FILES, LIBRARY_FILE, "*/config.json")
POOLING_KEYS = {
    "pooling_mode_mean_tokens": MEAN,
    "pooling_mode_cls_token": CLS,
    "pooling_mode_max_tokens": MAX,
    "pooling_mode_lasttoken": LAST,
}
"""Flags in a pooling module's file. Newer files have ``pooling_mode``."""
HIDDEN_KEYS = ("hidden_size", "dim", "n_embd", "d_model")
"""Keys in ``config.json`` for the length of a token's vector, by architecture."""
KEEPS_WHITE_SPACE = [5, 4]
"""Version of sentence-transformers from which on white space around texts is tokenized too (checked: 5.1, 5.3, 5.4, 5.7, 6.2)."""

Files = Mapping[str, object]
"""Contents of a checkpoint's JSON files by relative path."""
_Json = Mapping[str, Any]


def hidden_size(config: Mapping[str, object]) -> int:
    """Return the length of a token's vector.

    Raises:
        ValueError: The config has none of :data:`HIDDEN_KEYS`.
    """
    for key in HIDDEN_KEYS:
        value = config.get(key)
        if isinstance(value, int):
            return value
    raise ValueError(f"its config.json has none of the keys {', '.join(HIDDEN_KEYS)} with the size of a token's vector")


def read_settings(config: Mapping[str, object], files: Files, *, pooling: str | None) -> dict[str, JsonValue]:
    """Read the settings of a checkpoint.

    Args:
        config: Its ``config.json``.
        files: Its :data:`FILES`.
        pooling: The pooling that a user chose. None: as the files say.

    Raises:
        ValueError: The files ask for something that is not supported.
    """
    found: dict[str, JsonValue] = {
        "hidden": hidden_size(config),
        "lower_case": bool(_transformer_file(files).get("do_lower_case")),
        "strip": MODULES in files and _strips(cast(_Json, files.get(LIBRARY_FILE, {}))),
    }
    if MODULES in files:
        kinds = _modules(files)
        found |= {"pooling": pooling or _pooling(files), "normalize": "Normalize" in kinds}
    library = cast(_Json, files.get(LIBRARY_FILE, {}))
    if library.get("truncate_dim") is not None:
        found["truncate_dim"] = library["truncate_dim"]
    if name := library.get("default_prompt_name"):
        prompts = library.get("prompts") or {}
        if name not in prompts:
            raise ValueError(f"{LIBRARY_FILE} has no prompt {name!r}")
        found["prompt"] = prompts[name]
    return found


def max_length(files: Files) -> int | None:
    """Read the number of tokens that rows are truncated at. None: the files do not say."""
    length = _transformer_file(files).get("max_seq_length")
    return length if isinstance(length, int) and length > 0 else None


def files_written(
    *,
    hidden: int,
    pooling: str,
    normalize: bool,
    truncate_dim: int | None,
    prompt: str,
    lower_case: bool,
    max_length: int,
) -> dict[str, JsonValue]:
    """Return the files' contents for a fine-tuned checkpoint, by relative path."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds[1:], start=1))]
    prompts: dict[str, JsonValue] = {"prompts": {"default": prompt}, "default_prompt_name": "default"} if prompt else {}
    return {
        MODULES: [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ],
        f"{paths[1]}/config.json": {"word_embedding_dimension": hidden}
        | {key: mode == pooling for key, mode in POOLING_KEYS.items()},
        TRANSFORMER_FILE: {"max_seq_length": max_length, "do_lower_case": lower_case},
        LIBRARY_FILE: {"truncate_dim": truncate_dim, "similarity_fn_name": "cosine", **prompts},
    }


def _transformer_file(files: Files) -> _Json:
    """Find the file about the model itself. It is named after some architectures."""
    return next((cast(_Json, content) for path, content in sorted(files.items()) if fnmatchcase(path, TRANSFORMER_FILES)), {})


def _strips(library: _Json) -> bool:
    """Return whether the version of the library that wrote the files removes white space around texts.

    Versions before 5.4 do, and before 2.0 they did not record themselves.
    """
    version = str(library.get("__version__", {}).get("sentence_transformers", "0"))
    numbers = [int(part) for part in version.split(".")[:2] if part.isdecimal()]
    return numbers < KEEPS_WHITE_SPACE


def _modules(files: Files) -> list[str]:
    """Return the kinds of the chained modules.

    Raises:
        ValueError: A module is not supported.
    """
    own = "sentence_transformers."
    types = [str(module["type"]) for module in cast("list[_Json]", files[MODULES])]
    kinds = [name.rsplit(".", 1)[-1] if name.startswith(own) else name for name in types]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(f"{MODULES} chains {', '.join(kinds)}; supported is Transformer, Pooling and, optionally, Normalize")
    return kinds


def _pooling(files: Files) -> str:
    """Read the pooling mode: old files have one flag per mode, new files have one word.

    Raises:
        ValueError: The file is missing, or names an unsupported mode or several modes.
    """
    path = f"{cast('list[_Json]', files[MODULES])[1]['path']}/config.json"
    if path not in files:
        raise ValueError(f"{MODULES} names {path} with the pooling mode, but this file is missing")
    config = cast(_Json, files[path])
    if config.get("include_prompt") is False:
        raise ValueError(f"{path} excludes prompts from pooling, which is not supported")
    word = config.get("pooling_mode")
    flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    chosen = [word] if isinstance(word, str) else [POOLING_KEYS.get(key, key.removeprefix("pooling_mode_")) for key in flags]
    found = [{"lasttoken": LAST}.get(one, one) for one in chosen]
    if len(found) != 1 or found[0] not in POOLINGS:
        raise ValueError(f"{path} asks for pooling by {' and '.join(found) or 'nothing'}; supported are {', '.join(POOLINGS)}")
    return found[0]
