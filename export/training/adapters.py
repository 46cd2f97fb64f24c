"""Parameter-efficient fine-tuning with the methods of ``peft`` whose weights can be merged. Imports torch."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from export.training.hyperparameters import Adapter
from serving.errors import ArtifactError, DataError, SetupError, first_line

PEFT_TARGETS = {"IA3"}
"""Methods for which ``peft`` chooses the layers by architecture."""
ATTENTION = ("query", "value", "query_proj", "value_proj", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v",
             "Wqkv", "query_key_value", "qkv_proj", "c_attn")  # fmt: skip
"""Names of the query and value projections, or of fused projections, in the architectures of ``transformers``."""
ALL = "all-linear"
RANK = 16
"""Default rank of LoRA."""
TOLERANCE = 1e-5
"""Largest change of an output when an adapter is merged, relative to the largest output, or absolute if that is below 1."""


def adapter_methods() -> list[str]:
    """Return the names of the methods whose weights can be merged into the model's, as the export requires."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    return sorted(
        kind.value.lower()
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if hasattr(tuner, "merge_and_unload") and kind in PEFT_TYPE_TO_PREFIX_MAPPING
    )


def check_adapter(adapter: Adapter) -> None:
    """Refuse an adapter that cannot be trained, before anything is loaded.

    Args:
        adapter: The adapter.

    Raises:
        DataError: The method or one of its options does not exist.
        SetupError: This machine cannot load quantized weights.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    if adapter.method not in adapter_methods():
        known = adapter.method.upper() in PEFT_TYPE_TO_CONFIG_MAPPING
        why = "its weights cannot be merged into the model, so it cannot be exported" if known else "peft has no such method"
        raise DataError(f"no adapter {adapter.method!r}: {why}", hint=f"one of {', '.join(adapter_methods())}")
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[adapter.method.upper()]]
    unknown = adapter.options.keys() - inspect.signature(kind).parameters.keys()
    if unknown:
        named = ", ".join(sorted(unknown))
        raise DataError(f"{adapter.method} has no option {named}", hint=f"see {kind.__name__} in peft's documentation")
    if adapter.load_in is not None:
        _require_quantized_loading(adapter.load_in)


def _require_quantized_loading(load_in: str) -> None:
    from importlib.util import find_spec

    if not torch.cuda.is_available():
        raise SetupError(
            f"--load-in {load_in} needs an NVIDIA GPU, and torch sees none", hint="leave it out, or see: tritonize doctor"
        )
    if find_spec("bitsandbytes") is None:
        raise SetupError(f"--load-in {load_in} needs bitsandbytes", hint="install it with: pip install bitsandbytes")


def loading_options(adapter: Adapter | None) -> dict[str, Any]:
    """Return the options of ``from_pretrained`` for the frozen weights: quantized to 4 or 8 bits, or none."""
    if adapter is None or adapter.load_in is None:
        return {}
    from transformers import BitsAndBytesConfig

    if adapter.load_in == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    kind = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
    )
    return {"quantization_config": four}


def add_adapter(model: Any, adapter: Adapter, *, new: Collection[str], keeps_head: bool = False) -> Any:
    """Add an adapter to a model.

    It adapts the query and value projections (Hu et al. 2021). It adapts every linear layer if the user asks for that or the
    architecture's names are unknown. The head and the parameters that the checkpoint lacks are trained fully.

    LoRA's default scale is 2 (``lora_alpha`` is twice the rank): on the dev rows of SST-2, MiniLM was 1.3 points below full
    fine-tuning, and 2.1 points with scale 0.5.

    Args:
        model: The model.
        adapter: The adapter.
        new: Names of the parameters that the checkpoint lacks.
        keeps_head: Whether the head is the checkpoint's own and stays frozen, as the vocabulary of language models.

    Returns:
        The ``peft`` model.

    Raises:
        ArtifactError: The method does not support this model.
    """
    import peft

    if adapter.load_in is not None:
        model = peft.prepare_model_for_kbit_training(model)
    whole = list(_modules_to_save(model, new, keeps_head=keeps_head))
    chosen: dict[str, Any] = {"modules_to_save": whole or None}
    if adapter.method == "ln_tuning":
        chosen["target_modules"] = [name for name, module in model.named_modules() if "Norm" in type(module).__name__]
    elif adapter.method.upper() not in PEFT_TARGETS:
        head = model.get_output_embeddings() if keeps_head else None
        linear = sorted(name for name, module in _linear_layers(model, whole) if module is not head)
        attention = [name for name in linear if name.rpartition(".")[2] in ATTENTION]
        chosen["target_modules"] = linear if adapter.options.get("target_modules") == ALL or not attention else attention
    if adapter.method == "lora":
        rank = adapter.options.get("r", RANK)
        chosen |= {"r": rank, "lora_alpha": 2 * rank}
    own = {name: value for name, value in adapter.options.items() if value != ALL}
    chosen |= {name: _as_list(value) if name in chosen else value for name, value in own.items()}
    try:
        config = peft.get_peft_config({"peft_type": adapter.method.upper(), **chosen})
        return peft.get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError, AssertionError, NotImplementedError, KeyError) as error:
        raise ArtifactError(
            f"{adapter.method} cannot be used with this model: {first_line(error)}", hint="see --adapter-option"
        ) from error


def _modules_to_save(model: Any, new: Collection[str], *, keeps_head: bool) -> Iterator[str]:
    """Yield the outermost modules that are trained fully: the head, and those with parameters that the checkpoint lacks."""
    encoder = model.base_model
    shared = {id(parameter) for parameter in encoder.parameters()}
    heads = [] if encoder is model or keeps_head else [
        name
        for name, module in model.named_children()
        if module is not encoder and (own := list(module.parameters())) and not any(id(one) in shared for one in own)
    ]  # fmt: skip
    yield from heads
    owners = {name.rpartition(".")[0] for name in new}
    yield from sorted(
        owner for owner in owners if owner and not any(owner == head or owner.startswith(f"{head}.") for head in heads)
    )


def _linear_layers(model: Any, whole: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield linear layers that are not trained fully and not tied to the embeddings."""
    embeddings = model.get_input_embeddings()
    for name, module in model.named_modules():
        inside = any(name == one or name.startswith(f"{one}.") for one in whole)
        if isinstance(module, torch.nn.Linear | Conv1D) and not inside and module.weight is not embeddings.weight:
            yield name, module


def _as_list(value: Any) -> Any:
    """Split ``"query,value"`` into names: ``peft`` reads a single string as a pattern."""
    return re.split(r"\s*,\s*", value) if isinstance(value, str) and re.fullmatch(r"[\w.\s,-]+", value) else value


def save_adapter(model: Any, folder: Path, *, base: str) -> None:
    """Write the adapter alone, in the format of ``peft``.

    Args:
        model: The ``peft`` model.
        folder: Folder to write to.
        base: Name of the base checkpoint to record, as the user gave it.
    """
    model.save_pretrained(folder, safe_serialization=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def merge_adapter(model: Any, base: Any | None, folder: Path, batch: Mapping[str, Any]) -> tuple[Any, float]:
    """Merge the adapter's weights into the model's.

    Args:
        model: The ``peft`` model.
        base: The model without adapter in float32, if the weights of ``model`` are quantized; None: merge ``model`` itself.
        folder: Folder of the saved adapter.
        batch: Rows on which the outputs are compared.

    Returns:
        The merged model, and the largest difference between its outputs and those with the adapter.

    Raises:
        ArtifactError: The difference is larger than rounding explains.
    """
    import peft

    if base is not None:
        model = peft.PeftModel.from_pretrained(base, folder)
    model = model.eval()
    before = _outputs(model, batch)
    whole = model.merge_and_unload(safe_merge=True)
    after = _outputs(whole, batch)
    difference = max(float((one - other).abs().max()) for one, other in zip(before, after, strict=True))
    largest = max(1.0, *(float(one.abs().max()) for one in before))
    if not (math.isfinite(difference) and difference <= TOLERANCE * largest):
        raise ArtifactError(
            f"merging the adapter changed the model's outputs by {difference:.2g}; rounding explains {TOLERANCE * largest:.2g}",
            hint="that method's weights cannot be merged exactly; use another --adapter",
        )
    return whole, difference


def _outputs(model: Any, batch: Mapping[str, Any]) -> list[Any]:
    device = next(model.parameters()).device
    with torch.no_grad():
        found = model(**{name: values.to(device) for name, values in batch.items()})
    return [values.float() for values in found.to_tuple() if torch.is_tensor(values)]
