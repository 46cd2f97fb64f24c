"""Refuses checkpoints that are not what they seem: the stock classes of ``transformers`` would compute something else with them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import ArtifactError
from serving.reporting import logger

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ADAPTER_CONFIG = "adapter_config.json"
"""File of a folder that ``peft`` saved. ``transformers`` loads the adapter instead of the folder's own weights if it is there."""
PEFT_CLASSES = {
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
    "QUESTION_ANS": "QuestionAnswering",
    "FEATURE_EXTRACTION": "FeatureExtraction",
    "CAUSAL_LM": "CausalLM",
    "SEQ_2_SEQ_LM": "Seq2SeqLM",
}
"""What the names of the auto classes of ``peft`` end in, by the ``task_type`` of an adapter."""
BELONGS = "does its config.json belong to its weights?"
SHOWN = 3
"""Number of weights or tokens that a message names."""


def refuse_adapter(folder: Path, location: str) -> None:
    """Refuse an adapter: its folder lacks the weights of the model that it adapts.

    Args:
        folder: The checkpoint.
        location: The checkpoint, for messages.

    Raises:
        ArtifactError: It is an adapter. The hint has the command that merges it with its model.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        base, task = config.get("base_model_name_or_path") or "another model", str(config.get("task_type"))
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise ArtifactError(f"cannot read {file}: {error}", hint="download it or save it again") from error
    kind = f"AutoPeftModel{f'For{PEFT_CLASSES[task]}' if task in PEFT_CLASSES else ''}"
    labels = ", num_labels=N" if task in ("SEQ_CLS", "TOKEN_CLS") else ""
    command = (
        f'python -c "from peft import {kind} as Peft; '
        f"Peft.from_pretrained({location!r}{labels}).merge_and_unload().save_pretrained('merged')\""
    )
    raise ArtifactError(
        f"{location} is an adapter of {base}, not a checkpoint: it has {ADAPTER_CONFIG}",
        hint=f"merge it first: {command}{', where N is its number of labels' if labels else ''}; "
        f"then save the tokenizer of {base} into the same folder",
    )


def refuse_own_code(folder: Path, location: str) -> None:
    """Refuse a checkpoint with model or tokenizer classes of its own.

    They are never run. The stock classes would load the same weights, but compute something else.

    Args:
        folder: The checkpoint. All of its JSON files can be parsed.
        location: The checkpoint, for messages.

    Raises:
        ArtifactError: A file names such a class in ``auto_map``.
    """
    for file in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).is_file() else {}
        entries = content.get("auto_map") if isinstance(content, dict) else None
        if isinstance(entries, list):  # old tokenizers have the two classes of AutoTokenizer alone
            entries = {"AutoTokenizer": entries}
        named = {auto: _class_name(entry) for auto, entry in entries.items()} if isinstance(entries, dict) else {}
        own = [f"{auto} → {name}" for auto, name in named.items() if name and _decides_answers(auto)]
        if own:
            raise ArtifactError(
                f"{location} has code of its own ({file}, auto_map: {', '.join(own)}), which is never run, "
                f"and the classes of transformers would compute something else from its files",
                hint=f"use a checkpoint without own code; or remove auto_map from its {file} if they compute the same",
            )


def _decides_answers(auto_class: str) -> bool:
    """Return whether an auto class is for configs, models of torch or tokenizers, not for images or another framework."""
    return auto_class.startswith(("AutoConfig", "AutoModel", "AutoTokenizer"))


def _class_name(entry: object) -> str:
    """Return the class of an entry of ``auto_map``; of a slow and a fast tokenizer the one that would be used."""
    return str(next(filter(None, reversed(entry)), "") if isinstance(entry, list) else entry or "")


def refuse_own_pipeline(config: Mapping[str, object], task: str, location: str) -> None:
    """Refuse a checkpoint with a pipeline of its own for a task.

    Args:
        config: The checkpoint's ``config.json``.
        task: Name of the task.
        location: The checkpoint, for messages.

    Raises:
        ArtifactError: It has one.
    """
    pipelines = config.get("custom_pipelines")
    if isinstance(pipelines, dict) and task in pipelines:
        raise ArtifactError(
            f"{location} has a {task} pipeline of its own (custom_pipelines in config.json), which is never run, "
            "and the pipeline of transformers would give other answers",
            hint="remove custom_pipelines from its config.json if they give the same answers",
        )


def warn_of_own_class(model: PreTrainedModel, location: str) -> None:
    """Warn if a class saved the checkpoint that ``transformers`` does not have: the stock class may compute something else."""
    import transformers

    stock, named = set(dir(transformers)), model.config.architectures
    if own := [str(name) for name in named if name not in stock] if isinstance(named, list) else []:
        logger.warning(
            f"{location} was saved by {', '.join(own)}, which transformers does not have: {type(model).__name__} is used instead, "
            "and may compute something else"
        )


def check_weights(
    model: PreTrainedModel, found: Mapping[str, Collection[str]], location: str, *, unused: str, new_head: bool, remedy: str
) -> set[str]:
    """Check that the weights of a checkpoint are those of the model that its config describes.

    Args:
        model: The model.
        found: What ``from_pretrained`` reported: ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``.
        location: The checkpoint, for messages.
        unused: Part of the names of parameters that may be missing, because nothing reads what they compute, or because they are
            trained as the head is. Empty: no parameter.
        new_head: Whether the head may be missing, because it is trained.
        remedy: What to do about a missing head.

    Returns:
        The names of the parameters that the checkpoint has no weights for.

    Raises:
        ArtifactError: Weights are missing, have another shape, or belong to parts that the model does not have.
    """
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    name = type(model).__name__
    missing = set(found["missing_keys"])
    misshapen = set(found["mismatched_keys"])

    def required(key: str) -> bool:
        is_head = bool(prefix) and not key.startswith(prefix)
        return not ((unused and unused in key) or (new_head and is_head))

    if lost := sorted(filter(required, missing)):
        raise _lost_weights(lost, found["unexpected_keys"], location, name, prefix=prefix, remedy=remedy)
    if wrong := sorted(filter(required, misshapen)):
        shape = list(model.get_parameter(wrong[0]).shape)
        head = bool(prefix) and not wrong[0].startswith(prefix)
        raise ArtifactError(
            f"{location} has {_listed(wrong)} in another shape than {name} by its config.json, where {wrong[0]} is {shape}",
            hint="its head has one row per label: see id2label or num_labels" if head else BELONGS,
        )
    _check_unused(model, sorted(found["unexpected_keys"]), location)
    return missing | misshapen


def _lost_weights(
    lost: Sequence[str], unexpected: Collection[str], location: str, name: str, *, prefix: str, remedy: str
) -> ArtifactError:
    """Create the error about weights that a model of the class ``name`` needs and the checkpoint lacks."""
    if wrapper := _wrapper(lost[0].removeprefix(prefix), unexpected):
        return ArtifactError(
            f"the weights of {location} do not fit {name}: their names begin with {wrapper}",
            hint="save the model inside DataParallel, torch.compile or Lightning instead of the wrapper around it",
        )
    head = bool(prefix) and not any(key.startswith(prefix) and "pooler" not in key for key in lost)
    return ArtifactError(f"{location} lacks {_listed(lost)}, which {name} has by its config.json", hint=remedy if head else BELONGS)


def _check_unused(model: PreTrainedModel, unexpected: Sequence[str], location: str) -> None:
    """Refuse weights that the model does not use, except those of another head."""
    name = type(model).__name__
    parts = {child for child, _ in model.base_model.named_children()}
    if extra := [key for key in unexpected if key.removeprefix(f"{model.base_model_prefix}.").partition(".")[0] in parts]:
        raise ArtifactError(
            f"{location} has {_listed(extra)}, which {name} does not have by its config.json",
            hint=f"{BELONGS} It may name too few layers, or another architecture",
        )
    if unexpected:
        logger.info(f"{location} has {_listed(unexpected)}, which {name} does not use")


def _wrapper(name: str, unexpected: Collection[str]) -> str:
    """Return what stands in front of all names of the weights, such as ``module.``, if ``name`` is among them without it."""
    wrapped = next((key for key in unexpected if key.endswith(f".{name}")), "")
    first = wrapped.partition(".")[0] + "."
    return first if wrapped and all(key.startswith(first) for key in unexpected) else ""


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:SHOWN])
    return f"{len(names)} weight{'s' if len(names) > 1 else ''} ({shown}{' …' if len(names) > SHOWN else ''})"


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, location: str) -> None:
    """Check that the model has an embedding of every token: an added token needs one more than the model was made with.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        location: The checkpoint, for messages.

    Raises:
        ArtifactError: There are tokens without an embedding.
    """
    embeddings = model.get_input_embeddings().weight.shape[0]
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= embeddings)
    if beyond:
        shown = ", ".join(f"{token!r} (token {number})" for number, token in beyond[:SHOWN])
        raise ArtifactError(
            f"the model of {location} has embeddings of {embeddings} tokens, numbered from 0, but its tokenizer also has {shown}"
            f"{' …' if len(beyond) > SHOWN else ''}",
            hint="add embeddings with model.resize_token_embeddings(len(tokenizer)), which are then trained, "
            "or save the tokenizer that the model was trained with",
        )
