"""Read a Hugging Face checkpoint folder: config, tokenizer, model and maximum row length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from export.checkpoint_checks import check_tokens, check_weights, refuse_own_pipeline, warn_of_own_class
from export.tasks.base import Task
from serving.artifact import MANIFEST, sha256
from serving.errors import ArtifactError, refusing
from serving.reporting import logger
from serving.runtime.types import JsonValue

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

AnyTask = TypeVar("AnyTask", bound=Task)

REPAIR = "download it or save it again"
"""What to do about a checkpoint whose files are damaged."""
UNKNOWN_LIMIT = 512
"""Maximum tokens of a row if neither the tokenizer nor the model has a limit."""
UNLIMITED = 10**6
"""A ``model_max_length`` from here on means no limit; ``transformers`` uses 10**30."""


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``.

    Args:
        folder: The checkpoint.

    Returns:
        Its content.

    Raises:
        ArtifactError: The file is not readable.
    """
    config: dict[str, Any] = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ArtifactError(f"{folder / 'config.json'} is damaged: it is not a JSON object", hint=REPAIR)
    return config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"cannot read {path}: {error}", hint=REPAIR) from error


def check_readable(folder: Path) -> None:
    """Check that every JSON file of a checkpoint can be parsed, and that its weights are complete.

    Raises:
        ArtifactError: A file is damaged.
    """
    from safetensors import safe_open

    for path in sorted(folder.glob("*.json")):
        _read_json(path)
    for path in sorted(folder.glob("*.safetensors")):
        with refusing(f"{path} is damaged", hint=REPAIR), safe_open(path, framework="np"):
            pass


def read_settings(folder: Path, task: type[Task], chosen: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Read the settings of ``task`` from a checkpoint. Chosen settings take precedence.

    Args:
        folder: The checkpoint.
        task: The class of the task.
        chosen: Settings that the user chose, by name.

    Returns:
        Settings by name.

    Raises:
        ArtifactError: A file is not readable, or requires something that is not supported, such as a pipeline of its own.
        ValueError: A chosen setting does not exist, or its value is not allowed.
    """
    checked = task.check_settings(chosen)
    config = read_config(folder)
    refuse_own_pipeline(config, task.name, str(folder))
    try:
        return task.checkpoint_settings(config, read_files(folder, task), checked)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # the files may hold any JSON
        reason = str(error) if isinstance(error, ValueError) else "one of its JSON files does not have the expected structure"
        hint = "see --setting, and the checkpoint's files"
        raise ArtifactError(f"{folder} cannot be used for {task.name}: {reason}", hint=hint) from error


def is_fine_tuned(folder: Path) -> bool:
    """Return whether ``finetune`` wrote a checkpoint."""
    return (folder / MANIFEST).is_file()


def read_files(folder: Path, task: type[Task]) -> dict[str, JsonValue]:
    """Read the JSON files of a checkpoint that ``task`` needs besides the config.

    Args:
        folder: The checkpoint.
        task: The class of the task.

    Returns:
        The content of each file, by path relative to the folder.

    Raises:
        ArtifactError: A file is not readable.
    """
    paths = sorted({path for pattern in task.checkpoint_files for path in folder.glob(pattern)})
    return {path.relative_to(folder).as_posix(): _read_json(path) for path in paths}


def write_files(files: Mapping[str, JsonValue], folder: Path) -> None:
    """Write JSON files in the form that :func:`read_files` returns."""
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def require_task(config: dict[str, Any], task: type[Task], location: str) -> None:
    """Check that a checkpoint has a head for ``task``. A task without a head accepts any checkpoint.

    Args:
        config: The checkpoint's ``config.json``.
        task: The class of the task.
        location: The checkpoint, for messages.

    Raises:
        ArtifactError: The architecture belongs to another task.
    """
    if needs_head(task) and not has_head(config, task):
        found = ", ".join(architectures(config)) or "no architecture"
        raise ArtifactError(
            f"{location} is not a {task.name} checkpoint: its config names {found}, "
            f"but an architecture that ends in {' or '.join(_endings(task))} is needed",
            hint=f"fine-tune it first with: tritonize finetune --task {task.trained_as or task.name} --checkpoint {location}",
        )


def architectures(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the model classes in a checkpoint's ``config.json``."""
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def needs_head(task: type[Task]) -> bool:
    """Return whether only some model classes are of ``task``."""
    return all(_endings(task))


def has_head(config: Mapping[str, Any], task: type[Task]) -> bool:
    """Return whether a checkpoint's model class has the head of ``task``."""
    return needs_head(task) and any(name.endswith(_endings(task)) for name in architectures(config))


def _endings(task: type[Task]) -> tuple[str, ...]:
    return task.architectures or (task.auto_model.removeprefix("AutoModel"),)


def load_tokenizer(folder: Path, *, pads_with_end: bool = False) -> PreTrainedTokenizerFast:
    """Load the checkpoint's fast tokenizer. Slow tokenizers have no ``tokenizer.json``, which serving needs.

    Args:
        folder: The checkpoint.
        pads_with_end: Use the end-of-text token for padding if the tokenizer has no padding token.

    Returns:
        The tokenizer.

    Raises:
        ArtifactError: There is no fast tokenizer, or its files are damaged.
    """
    from transformers import AutoTokenizer

    from export.slow_tokenizers.tokenizer_class import fast_class

    hint = "it needs a tokenizer.json, and a tokenizer_config.json that this version of transformers reads"
    with refusing(f"cannot load the tokenizer of {folder}", hint=hint):
        tokenizer_class = fast_class(folder) or AutoTokenizer
        tokenizer = tokenizer_class.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        if tokenizer is False:  # so transformers says that SentencePiece cannot read its model
            raise ValueError("its SentencePiece model is damaged")
    if not tokenizer.is_fast:
        raise ArtifactError(f"the tokenizer of {folder} is not a fast tokenizer and cannot be served: a tokenizer.json is needed")
    if getattr(tokenizer, "missing_pieces", 0):
        logger.warning(
            f"{tokenizer.missing_pieces} pieces of the SentencePiece model of {folder} are not in its vocab.json: smaller ones are "
            "used in their place, where transformers takes them as unknown"
        )
    names = tokenizer.model_input_names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(f"model_input_names in the tokenizer_config.json of {folder} is {names!r:.80}, not a list", hint=REPAIR)
    if tokenizer.pad_token_id is None and pads_with_end:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def bind_tokenizer(task: AnyTask, tokenizer: PreTrainedTokenizerFast, location: str) -> AnyTask:
    """Bind ``task`` to the checkpoint's tokenizer.

    Args:
        task: The task.
        tokenizer: The tokenizer.
        location: The checkpoint, for messages.

    Returns:
        The bound task.

    Raises:
        ArtifactError: The task does not work with this tokenizer.
    """
    try:
        return task.with_tokenizer(tokenizer)
    except ValueError as error:
        raise ArtifactError(f"{location} cannot be used for {task.name}: {error}", hint="see its tokenizer_config.json") from None


def load_model(folder: Path, task: type[Task], tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Load a checkpoint in float32 with the auto class of ``task``, in evaluation mode.

    Args:
        folder: The checkpoint.
        task: The class of the task.
        tokenizer: The checkpoint's tokenizer.

    Returns:
        The model.

    Raises:
        ArtifactError: The architecture does not support the task, or the weights do not fit the config or the tokenizer.
    """
    return _load(folder, task, tokenizer, unused="pooler" if task.auto_model == "AutoModel" else "")[0]


def load_for_training(
    folder: Path, task: type[Task], tokenizer: PreTrainedTokenizerFast, *, new_head: bool, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """Load a checkpoint as :func:`load_model` does, and list its newly initialized parameters.

    Args:
        folder: The checkpoint.
        task: The class of the task.
        tokenizer: The checkpoint's tokenizer.
        new_head: Whether the checkpoint may lack the head and the pooler before it, or have others.
        options: Arguments for ``from_pretrained``.

    Returns:
        The model, and the names of the parameters that the checkpoint has no weights for.

    Raises:
        ArtifactError: The architecture does not support the task, or the weights do not fit the config or the tokenizer.
    """
    return _load(folder, task, tokenizer, unused="pooler" if new_head else "", new_head=new_head, **options)


def _load(
    folder: Path, task: type[Task], tokenizer: PreTrainedTokenizerFast, *, unused: str, new_head: bool = False, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # check_weights reports what it warns of
    auto = getattr(transformers, task.auto_model)
    with refusing(f"cannot load {folder} for {task.name}", hint="see its config.json"):
        model, info = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_weights names them
            return_dict=True,  # outputs are read by name, whatever config.json says
            torchscript=False,
            **options,
        )
    warn_of_own_class(model, str(folder))
    remedy = f"fine-tune it first with: tritonize finetune --task {task.trained_as or task.name} --checkpoint {folder}"
    new = check_weights(model, info, str(folder), unused=unused, new_head=new_head, remedy=remedy)
    check_tokens(model, tokenizer, str(folder))
    return model.eval(), new


def resolve_max_length(
    requested: int | None,
    tokenizer: PreTrainedTokenizerFast,
    config: dict[str, Any],
    *,
    default: int | None,
    recommended: int | None = None,
    fine_tuned: bool = False,
) -> int:
    """Determine the maximum number of tokens per row.

    The limit of the model is its number of positions. The tokenizer's ``model_max_length`` is only where ``transformers``
    truncates if it is not told otherwise.

    Args:
        requested: The length that the user asked for, if any.
        tokenizer: The checkpoint's tokenizer.
        config: The checkpoint's ``config.json``.
        default: Length if none was requested, reduced to where ``transformers`` truncates; None: that length, or 512 if there is
            none.
        recommended: Length that the checkpoint's other files recommend in place of the tokenizer's.
        fine_tuned: Whether ``finetune`` wrote the checkpoint. Its tokenizer then truncates at the length of that training, which is
            no limit of the model.

    Returns:
        The maximum number of tokens.

    Raises:
        ArtifactError: The requested length exceeds the model's limit.
    """
    truncated = tokenizer.model_max_length
    if not isinstance(truncated, int) or truncated < 1:
        raise ArtifactError(f"model_max_length in tokenizer_config.json is {truncated!r}, not a number of tokens", hint=REPAIR)
    positions = max_positions(config)
    if requested is None:
        own = recommended or (None if fine_tuned else truncated)
        limits = [limit for limit in (own, positions, default) if limit is not None and limit < UNLIMITED]
        return min(limits, default=UNKNOWN_LIMIT)
    if positions is not None and requested > positions:
        raise ArtifactError(
            f"the model takes at most {positions} tokens, not {requested}", hint=f"give --max-length {positions} or less"
        )
    return requested


def max_positions(config: Mapping[str, object]) -> int | None:
    """Return the number of tokens that a model has positions for.

    Args:
        config: The checkpoint's ``config.json``.

    Returns:
        The number, special tokens included; None if the config names no limit, as for relative positions.

    Raises:
        ArtifactError: The number in the config is not a whole number.
    """
    positions = _whole_number(config, "max_position_embeddings")
    if positions is None and not config.get("is_encoder_decoder"):  # T5 has it too, but its relative positions have no limit
        positions = _whole_number(config, "n_positions")
    if positions is None or positions <= 0:
        return None
    # these number their positions from pad_token_id + 1 on; the default of pad_token_id is 1
    shifted = config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer")
    padding = _whole_number(config, "pad_token_id")
    return positions - ((1 if padding is None else padding) + 1 if shifted else 0)


def _whole_number(config: Mapping[str, object], key: str) -> int | None:
    value = config.get(key)
    if value is not None and type(value) is not int:
        raise ArtifactError(f"{key} in config.json is {value!r:.80}, not a whole number", hint=REPAIR)
    return value


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, max_length: int, *, longer_texts: bool = False) -> None:
    """Write the tokenizer's files. ``tokenizer.json`` truncates rows at ``max_length`` tokens and does not pad.

    ``transformers`` truncates at ``model_max_length`` in ``tokenizer_config.json``, which becomes ``max_length`` too. If the model
    takes longer texts than the rows that it was trained on, nothing is truncated.

    Args:
        tokenizer: The tokenizer. It is changed.
        folder: Where the files are written.
        max_length: Maximum tokens of a row.
        longer_texts: Whether the model takes texts longer than the rows: ``model_max_length`` is then never reduced.
    """
    tokenizer.model_max_length = max(tokenizer.model_max_length, max_length) if longer_texts else max_length
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    if longer_texts:
        backend.no_truncation()
    else:
        backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    tokenizer.save_pretrained(folder)


def weights_size(folder: Path) -> int:
    """Return the total size in bytes of the safetensors files of a checkpoint."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def weights_sha256(folder: Path) -> str:
    """Compute one SHA-256 for the safetensors files of a checkpoint: that of the file itself if there is only one."""
    sums = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    if len(sums) == 1:
        return next(iter(sums.values()))
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
