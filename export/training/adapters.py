"""Parameter-efficient fine-tuning: few new weights beside frozen ones, by any method of ``peft`` that merges. Imports torch."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from export.training.hyperparameters import Adapter
from serving.errors import ArtifactError, DataError, SetupError

NOT_FOR_ALL = {"IA3"}
"""Methods that are not for every linear layer: ``peft`` knows for each architecture which layers they are for."""
ATTENTION = ("query", "value", "query_proj", "value_proj", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v",
             "Wqkv", "query_key_value", "qkv_proj", "c_attn")  # fmt: skip
"""What architectures call the layers that make queries and values, or those and keys in one."""
ALL = "all-linear"
RANK = 16
"""Of LoRA, where its user names none."""
TOLERANCE = 1e-5
"""How far logits may move when an adapter is merged, relative to the largest of them, or absolute below 1."""


def adapter_methods() -> list[str]:
    """Names of the methods whose weights can be merged into the model's, without which nothing could be exported."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    return sorted(
        kind.value.lower()
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if hasattr(tuner, "merge_and_unload") and kind in PEFT_TYPE_TO_PREFIX_MAPPING
    )


def check_adapter(adapter: Adapter) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        DataError: no such method, or it has no such option.
        SetupError: weights cannot be loaded so on this machine.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    if adapter.method not in adapter_methods():
        known = adapter.method.upper() in PEFT_TYPE_TO_CONFIG_MAPPING
        why = "its weights cannot be merged into the model's, so it could not be exported" if known else "peft has no such method"
        raise DataError(f"no adapter {adapter.method!r}: {why}", hint=f"one of {', '.join(adapter_methods())}")
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType[adapter.method.upper()]]
    strange = adapter.options.keys() - inspect.signature(kind).parameters.keys()
    if strange:
        named = ", ".join(sorted(strange))
        raise DataError(f"{adapter.method} has no option {named}", hint=f"see {kind.__name__} in peft's documentation")
    if adapter.load_in is not None:
        _require_quantised_loading(adapter.load_in)


def _require_quantised_loading(load_in: str) -> None:
    from importlib.util import find_spec

    if not torch.cuda.is_available():
        raise SetupError(
            f"--load-in {load_in} needs an NVIDIA GPU, and torch sees none", hint="leave it out, or see: tritonize doctor"
        )
    if find_spec("bitsandbytes") is None:
        raise SetupError(f"--load-in {load_in} needs bitsandbytes", hint="install it with: pip install bitsandbytes")


def loading_options(adapter: Adapter | None) -> dict[str, Any]:
    """For ``from_pretrained``: how the frozen weights are kept."""
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
    """``model`` with an adapter where it makes queries and values, as LoRA's authors found enough; in every linear layer where
    that is asked for, or those are unknown; or where the method has it. Its head and its new weights are trained whole.

    LoRA's updates count double (``lora_alpha`` is twice the rank): MiniLM lost 2.1 points of SST-2's dev rows to full fine-tuning
    where they counted half, and 1.3 so.

    Args:
        new: names of the parameters that the checkpoint lacks.
        keeps_head: the head is the checkpoint's own, for the same task, and stays as it is: a whole vocabulary in language models.

    Raises:
        ArtifactError: the method cannot be used with this model.
    """
    import peft

    if adapter.load_in is not None:
        model = peft.prepare_model_for_kbit_training(model)
    whole = list(_trained_whole(model, new, keeps_head=keeps_head))
    chosen: dict[str, Any] = {"modules_to_save": whole or None}
    if adapter.method == "ln_tuning":
        chosen["target_modules"] = [name for name, module in model.named_modules() if "Norm" in type(module).__name__]
    elif adapter.method.upper() not in NOT_FOR_ALL:
        head = model.get_output_embeddings() if keeps_head else None
        linear = sorted(name for name, module in _linear(model, whole) if module is not head)
        attention = [name for name in linear if name.rpartition(".")[2] in ATTENTION]
        chosen["target_modules"] = linear if adapter.options.get("target_modules") == ALL or not attention else attention
    if adapter.method == "lora":
        rank = adapter.options.get("r", RANK)
        chosen |= {"r": rank, "lora_alpha": 2 * rank}
    own = {name: value for name, value in adapter.options.items() if value != ALL}
    chosen |= {name: _listed(value) if name in chosen else value for name, value in own.items()}
    try:
        config = peft.get_peft_config({"peft_type": adapter.method.upper(), **chosen})
        return peft.get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError, AssertionError, NotImplementedError, KeyError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ArtifactError(f"{adapter.method} cannot be used with this model: {reason}", hint="see --adapter-option") from error


def _trained_whole(model: Any, new: Collection[str], *, keeps_head: bool) -> Iterator[str]:
    """The outermost modules that have no trained weights to adapt: the head, and what else the checkpoint lacks."""
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


def _linear(model: Any, whole: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Linear layers that are not trained whole, and not tied to the embeddings."""
    embeddings = model.get_input_embeddings()
    for name, module in model.named_modules():
        inside = any(name == one or name.startswith(f"{one}.") for one in whole)
        if isinstance(module, torch.nn.Linear | Conv1D) and not inside and module.weight is not embeddings.weight:
            yield name, module


def _listed(value: Any) -> Any:
    """``"query,value"`` as a list of names: ``peft`` reads a single string as a pattern."""
    return re.split(r"\s*,\s*", value) if isinstance(value, str) and re.fullmatch(r"[\w.\s,-]+", value) else value


def save_adapter(model: Any, folder: Path, *, base: str) -> None:
    """Write the adapter alone, as ``peft`` loads it.

    Args:
        base: where the frozen weights come from, as the user calls it; the folder they happened to be read from says nothing.
    """
    model.save_pretrained(folder, safe_serialization=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": base}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def merge_adapter(model: Any, base: Any | None, folder: Path, batch: Mapping[str, Any]) -> tuple[Any, float]:
    """The adapter's weights added to the model's own, so that it is like any other.

    Args:
        model: adapted.
        base: the model without adapter in float32, where ``model`` keeps its weights otherwise; None: ``model`` itself is merged.
        folder: where the adapter was saved.
        batch: rows to hold the two against each other on.

    Returns:
        The merged model, and the largest difference of its outputs from the adapter's.

    Raises:
        ArtifactError: that is more than rounding.
    """
    import peft

    if base is not None:
        model = peft.PeftModel.from_pretrained(base, folder)
    model = model.eval()
    before = _outputs(model, batch)
    whole = model.merge_and_unload(safe_merge=True)
    after = _outputs(whole, batch)
    apart = max(float((one - other).abs().max()) for one, other in zip(before, after, strict=True))
    largest = max(1.0, *(float(one.abs().max()) for one in before))
    if not apart <= TOLERANCE * largest:  # not a number neither
        raise ArtifactError(
            f"merging the adapter changed the model's outputs by {apart:.2g}, where rounding explains {TOLERANCE * largest:.2g}",
            hint="that method's weights cannot be merged exactly; use another --adapter",
        )
    return whole, apart


def _outputs(model: Any, batch: Mapping[str, Any]) -> list[Any]:
    device = next(model.parameters()).device
    with torch.no_grad():
        found = model(**{name: values.to(device) for name, values in batch.items()})
    return [values.float() for values in found.to_tuple() if torch.is_tensor(values)]
