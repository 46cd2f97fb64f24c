"""Finds the defaults with which ``transformers.pipeline`` generates from a checkpoint.

They are neither those of the checkpoint's ``generation_config.json`` nor those of ``generate``: the pipelines have some of their
own, which come first. ``transformers`` itself computes them here, by the functions that its pipelines call.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from serving.runtime.generation.library_defaults import LIBRARY_DEFAULTS, WITHOUT_EFFECT
from serving.runtime.tasks._generation import TOKENS
from serving.runtime.types import JsonValue

if TYPE_CHECKING:
    from transformers import GenerationConfig

IGNORED = (*WITHOUT_EFFECT, "trust_remote_code", *TOKENS)
"""Entries without effect on an answer of the server."""


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What a pipeline knows without options.

    Attributes:
        generation: Options by the names of ``transformers.GenerationConfig``, where they are not the library's own defaults.
        model_generation: Those of ``generate`` itself where it gets an empty ``generation_config``, and ``pad_token_id``.
        prefix: Text in front of every input.
        bos_token_id: Token that begins a text.
        pad_token_id: Token that fills rows.
        decoder_start_token_id: Token with which a decoder begins.
    """

    generation: Mapping[str, JsonValue]
    model_generation: Mapping[str, JsonValue]
    prefix: str
    bos_token_id: int | None
    pad_token_id: int | None
    decoder_start_token_id: int | None


def generation_defaults(
    task: str, generation_config: GenerationConfig, config: Mapping[str, Any], *, pad_token_id: int | None
) -> GenerationDefaults:
    """Return the defaults of ``transformers.pipeline(task)`` for a checkpoint.

    Args:
        task: ``text-generation``, ``summarization``, ``translation`` or ``translation_xx_to_yy``.
        generation_config: The attribute ``generation_config`` of the checkpoint's model.
        config: The checkpoint's ``config.json``.
        pad_token_id: Padding token of the checkpoint's tokenizer.

    Raises:
        KeyError: There is no such task.
    """
    from transformers import GenerationConfig

    found = _prepared(_pipeline_config(task), generation_config, use_model_defaults=True)
    own = _pipeline_config(task).max_new_tokens
    if found.max_new_tokens == own and found.max_length not in (None, GenerationConfig().max_length):
        found.max_new_tokens = None  # as Pipeline.__init__ does
    for_task = dict((config.get("task_specific_params") or {}).get(pipeline_task(task, config)) or {})
    prefix = for_task.pop("prefix", config.get("prefix"))
    found.update(**for_task)
    if found.pad_token_id is None:
        found.pad_token_id = pad_token_id
    found = _prepared(found, generation_config, use_model_defaults=None)  # as generate does with the pipeline's
    alone = _prepared(GenerationConfig(), generation_config, use_model_defaults=None)
    padding = {} if alone.pad_token_id is None else {"pad_token_id": alone.pad_token_id}
    return GenerationDefaults(
        generation=_entries(found),
        model_generation=_entries(alone) | padding,
        prefix=prefix or "",
        **{name: getattr(found, name) for name in TOKENS},
    )


def _entries(config: GenerationConfig) -> dict[str, JsonValue]:
    """Return what a config says of the answers, where that is not the library's default."""
    return {name: value for name, value in config.to_diff_dict().items() if name in LIBRARY_DEFAULTS and name not in IGNORED}


def pipeline_task(task: str, config: Mapping[str, Any]) -> str:
    """Return the task for which ``transformers.pipeline(task)`` looks in the ``task_specific_params`` of a config.

    For ``translation`` that is the first pair of languages.
    """
    pairs = [name for name in config.get("task_specific_params") or {} if name.startswith("translation")]
    return pairs[0] if task == "translation" and pairs else task


def _pipeline_config(task: str) -> GenerationConfig:
    from transformers import SummarizationPipeline, TextGenerationPipeline, TranslationPipeline

    pipelines = {
        "text-generation": TextGenerationPipeline,
        "summarization": SummarizationPipeline,
        "translation": TranslationPipeline,
    }
    return deepcopy(pipelines[task.partition("_")[0]]._default_generation_config)


def _prepared(given: GenerationConfig, model: GenerationConfig, *, use_model_defaults: bool | None) -> GenerationConfig:
    """Return ``given`` with the model's values where it has the library's defaults; of the model only these are read."""
    from transformers import GenerationMixin

    holder = SimpleNamespace(generation_config=model)
    prepared, _ = GenerationMixin._prepare_generation_config(holder, given, use_model_defaults=use_model_defaults)
    return prepared
