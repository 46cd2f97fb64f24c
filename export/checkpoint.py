"""A Hugging Face checkpoint folder: its config, its tokenizer, how long a row it takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from export.tasks.base import Task
from serving.artifact import sha256
from serving.errors import ArtifactError

AnyTask = TypeVar("AnyTask", bound=Task)

UNKNOWN_LIMIT = 512
"""Tokens kept of a row where neither the tokenizer nor the model says where it ends."""
UNLIMITED = 10**6
"""Tokenizers without a limit say 10**30; anything from here on is none."""


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` as it stands.

    Raises:
        ArtifactError: it is not readable.
    """
    config: dict[str, Any] = _read_json(folder / "config.json")
    return config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error


def settings(folder: Path, task: type[Task], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What the checkpoint says of ``task``'s settings, and over it what was ``chosen``.

    Raises:
        ArtifactError: a file is not readable, or asks for what cannot be done.
        ValueError: a setting cannot be chosen so.
    """
    own = task.check_settings(chosen)
    try:
        return task.checkpoint_settings(read_config(folder), read_files(folder, task), own)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # whoever wrote those files
        reason = str(error) if isinstance(error, ValueError) else "one of its JSON files is not of the form it should have"
        raise ArtifactError(f"{folder} cannot be used for {task.name}: {reason}", hint="see --setting, and its files") from error


def read_files(folder: Path, task: type[Task]) -> dict[str, Any]:
    """The JSON files that ``task`` reads of a checkpoint besides its config, by path in its folder.

    Raises:
        ArtifactError: one is not readable.
    """
    paths = sorted({path for pattern in task.checkpoint_files for path in folder.glob(pattern)})
    return {path.relative_to(folder).as_posix(): _read_json(path) for path in paths}


def write_files(files: Mapping[str, Any], folder: Path) -> None:
    """Write what :func:`read_files` reads."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def require_task(config: dict[str, Any], task: type[Task], location: str) -> None:
    """Refuse a checkpoint that has no head for ``task``. Any has what a task without a head needs.

    Raises:
        ArtifactError: its architecture is one of another task.
    """
    endings = task.architectures or (task.auto_model.removeprefix("AutoModel"),)
    architectures = config.get("architectures") or []
    if not any(name.endswith(endings) for name in architectures) and all(endings):
        found = ", ".join(architectures) or "no architecture"
        raise ArtifactError(
            f"{location} is no {task.name} checkpoint: its config names {found}, not one that ends in {' or '.join(endings)}",
            hint=f"fine-tune it first with: tritonize finetune --task {task.trained_as or task.name} --checkpoint {location}",
        )


def load_tokenizer(folder: Path, *, pads_with_end: bool = False) -> Any:
    """The checkpoint's fast tokenizer (``transformers.PreTrainedTokenizerFast``): only such a one gives a ``tokenizer.json``.

    Args:
        pads_with_end: one without a padding token pads with the one that ends a text.

    Raises:
        ArtifactError: there is none, or it has no padding token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        needed = "a tokenizer.json is needed"
        raise ArtifactError(f"cannot load the tokenizer of {folder}: {first_line(error)}", hint=needed) from error
    if not tokenizer.is_fast:
        raise ArtifactError(f"the tokenizer of {folder} has no fast form, so it cannot be served: a tokenizer.json is needed")
    if tokenizer.pad_token_id is None and pads_with_end:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ArtifactError(f"the tokenizer of {folder} has no padding token", hint="set pad_token in its tokenizer_config.json")
    return tokenizer


def bind_tokenizer(task: AnyTask, tokenizer: Any, location: str) -> AnyTask:
    """``task`` bound to the checkpoint's tokenizer.

    Raises:
        ArtifactError: it cannot do the task with that one.
    """
    try:
        return task.with_tokenizer(tokenizer)
    except ValueError as error:
        raise ArtifactError(f"{location} cannot be used for {task.name}: {error}", hint="see its tokenizer_config.json") from None


def load_model(folder: Path, task: type[Task], **options: Any) -> Any:
    """The checkpoint in float32 under ``task``'s auto class, in evaluation mode.

    Args:
        options: for ``from_pretrained``.

    Raises:
        ArtifactError: the architecture cannot do that task, or the weights do not fit the config.
    """
    return load_for_training(folder, task, **options)[0]


def load_for_training(folder: Path, task: type[Task], **options: Any) -> tuple[Any, set[str]]:
    """As :func:`load_model`, and beside it the names of the parameters that the checkpoint has no weights for: they are new."""
    import torch
    import transformers
    from safetensors import SafetensorError

    transformers.logging.set_verbosity_error()  # a new head is no news
    auto = getattr(transformers, task.auto_model)
    try:
        model, info = auto.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ArtifactError(f"cannot load {folder} for {task.name}: {first_line(error)}") from error
    return model.eval(), {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def first_line(error: Exception) -> str:
    """What a library's error says first; its type's name where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def chosen_max_length(wanted: int | None, tokenizer: Any, config: dict[str, Any], *, default: int | None) -> int:
    """Tokens kept of a row: ``wanted``; else ``default``, or what the model takes if that is less.

    Args:
        default: None: what the model takes, which is what ``transformers`` cuts at; 512 where it takes rows of any length.

    Raises:
        ArtifactError: more is wanted than the model takes.
    """
    limits = [limit for limit in (tokenizer.model_max_length, _positions(config)) if limit is not None and limit < UNLIMITED]
    if wanted is None:
        return min(limits, default=UNKNOWN_LIMIT) if default is None else min([default, *limits])
    limit = min(limits, default=UNLIMITED)
    if wanted > limit:
        raise ArtifactError(f"the model takes at most {limit} tokens, not {wanted}", hint=f"give --max-length {limit} or less")
    return wanted


def _positions(config: dict[str, Any]) -> int | None:
    positions = config.get("max_position_embeddings")
    if positions is None and not config.get("is_encoder_decoder"):  # T5 has that too, and takes rows of any length
        positions = config.get("n_positions")
    if positions is None or positions <= 0:
        return None
    # these count positions from behind the padding token's id, 1 where the config does not say
    shifted = config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer")
    padding = config.get("pad_token_id")
    return int(positions) - ((1 if padding is None else int(padding)) + 1 if shifted else 0)


def save_tokenizer(tokenizer: Any, folder: Path, max_length: int) -> None:
    """Write the tokenizer's files; ``tokenizer.json`` cuts rows at ``max_length`` on the side the tokenizer does, and pads none."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    tokenizer.save_pretrained(folder)


def weights_size(folder: Path) -> int:
    """Bytes of the safetensors files of a checkpoint."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def weights_sha256(folder: Path) -> str:
    """One digest over the safetensors files of a checkpoint: the file's own where there is one file."""
    sums = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    if len(sums) == 1:
        return next(iter(sums.values()))
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
