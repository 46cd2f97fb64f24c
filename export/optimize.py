"""fp32 graph → fused fp32, fp16, int8. Whatever cannot be done is raised or recorded, never passed over."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from export import graph
from export.checkpoint import first_line
from export.convert import exporter_kept_quiet
from serving.errors import ExportError
from serving.runtime.types import Arrays

FP16_MAX = 65504.0
HEADROOM = 0.5
"""An activation above this share of fp16's largest number is kept in fp32: other rows than those looked at may go higher."""
SUMMED = {"SkipLayerNormalization": (0, 1, 3), "EmbedLayerNormalization": (2, 3, 4)}
"""Fused operators that add these inputs inside, where no tensor shows it (for the latter, rows of its tables)."""


def fuse(raw: Path, checkpoint: Path, target: Path) -> str:
    """Fuse attention, layer normalisation and activations with ONNX Runtime's transformer optimizer, provider-neutral (level 1).

    Attention keeps its raw mask: the default fusion reads it as a count of leading tokens, which left padding breaks.
    Architectures that the optimizer refuses stay as they are.

    Returns:
        ``onnxruntime``, or ``none: <why not>``.

    Raises:
        ExportError: the optimizer failed on an architecture it knows.
    """
    from optimum.onnxruntime import ORTOptimizer
    from optimum.onnxruntime.configuration import OptimizationConfig

    config = OptimizationConfig(
        optimization_level=1, optimize_for_gpu=False, use_raw_attention_mask=True, disable_embed_layer_norm_fusion=False
    )
    with tempfile.TemporaryDirectory() as folder, exporter_kept_quiet():
        try:
            # from_ortmodel: otherwise it deletes the external data of the graph it reads
            optimizer = ORTOptimizer([raw], _config(checkpoint), from_ortmodel=True)
            optimizer.optimize(config, save_dir=folder, file_suffix="")
        except NotImplementedError as error:  # so Optimum says that it does not know the architecture
            reason = first_line(error)
            graph.save(graph.load(raw), target)
            return f"none: {reason}"
        except (ValueError, RuntimeError, AttributeError, AssertionError, LookupError, TypeError) as error:
            raise ExportError(f"ONNX Runtime's optimizer failed: {type(error).__name__}: {error}") from error
        graph.save(graph.load(Path(folder) / raw.name), target)
    return "onnxruntime"


def _config(checkpoint: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)


def operators(path: Path) -> dict[str, int]:
    """How many fused operators (those of ONNX Runtime's own domain) a graph has, by type."""
    model = onnx.load(str(path), load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft")
    return dict(sorted(counts.items()))


def to_fp16(fused: Path, target: Path, feeds: Sequence[Arrays]) -> list[str]:
    """Cast the fused graph to fp16. Its inputs and outputs, nodes that could overflow and those that compute positions stay fp32.

    Args:
        feeds: model inputs of real rows, one batch each: activations are looked at on these.

    Returns:
        Names of the nodes kept in fp32, in the graph's order.

    Raises:
        ExportError: the graph cannot be cast.
    """
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = graph.load(fused)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_unnamed_{index}"
    found = peaks(model, feeds)
    wanted = overflowing_nodes(model, found) | indexing_nodes(model, found)
    kept = [node.name for node in model.graph.node if node.name in wanted]
    casting = OnnxModel(model)
    with exporter_kept_quiet():
        try:
            casting.convert_float_to_float16(keep_io_types=True, node_block_list=kept)
        except (ValueError, RuntimeError, AttributeError, AssertionError, IndexError, TypeError) as error:
            raise ExportError(
                f"ONNX Runtime could not cast the graph to fp16: {type(error).__name__}: {error}",
                hint="leave it out with --precision fp32,int8",
            ) from error
    casting.topological_sort()
    graph.save(casting.model, target)
    return kept


def peaks(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> dict[str, float]:
    """Largest magnitude of every floating-point tensor of ``model`` over ``feeds``, weights included."""
    found = {
        tensor.name: _peak(onnx.numpy_helper.to_array(tensor))
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    for tensors in graph.intermediates(model, feeds):
        for name, value in tensors.items():
            found[name] = max(found.get(name, 0.0), _peak(value))
    return found


def _peak(values: npt.NDArray[np.floating]) -> float:
    return float(np.abs(values).max(initial=0.0))


def overflowing_nodes(model: onnx.ModelProto, tensor_peaks: Mapping[str, float]) -> set[str]:
    """Names of the nodes that read, write or add up inside a value too near fp16's largest number.

    Where attention is not fused, its mask is such a value: scores are masked and normalised in fp32 then, as PyTorch does.
    """
    limit = HEADROOM * FP16_MAX
    kept = set()
    for node in model.graph.node:
        own = [tensor_peaks.get(name, 0.0) for name in (*node.input, *node.output)]
        summed = sum(tensor_peaks.get(node.input[i], 0.0) for i in SUMMED.get(node.op_type, ()) if i < len(node.input))
        if max(own, default=0.0) >= limit or summed >= limit:
            kept.add(node.name)
    return kept


def indexing_nodes(model: onnx.ModelProto, floats: Container[str]) -> set[str]:
    """Names of the nodes whose floating-point result ends up as a whole number, such as the buckets of relative positions.

    Rounded to fp16 on its way, a logarithm just below 3 becomes 3: another bucket, and another row of a table.

    Args:
        floats: names of the model's floating-point tensors.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    whole = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    open_ends = [
        node
        for node in model.graph.node
        if node.op_type == "Cast"
        and node.input[0] in floats
        and any(attribute.name == "to" and attribute.i in whole for attribute in node.attribute)
    ]
    kept: set[str] = set()
    while open_ends:
        node = open_ends.pop()
        if node.name not in kept:
            kept.add(node.name)
            open_ends += [producers[name] for name in node.input if name in floats and name in producers]
    return kept


def overflowed(fp16: Path, fp32: Path, feeds: Sequence[Arrays]) -> list[str]:
    """Names of the fp16 tensors inside a graph that are infinite or no number where the fp32 graph's are neither.

    A CPU computes fp16 operators in fp32, so answers alone would not show it; the tensors between them are real fp16.
    """
    bad = set()
    pairs = zip(graph.intermediates(graph.load(fp16), feeds), graph.intermediates(graph.load(fp32), feeds), strict=True)
    for half, full in pairs:
        for name, value in half.items():
            broken = ~np.isfinite(value) & (value.dtype == np.float16)
            if name in full and full[name].shape == value.shape:
                broken &= np.isfinite(full[name])
            if broken.any():
                bad.add(name)
    return sorted(bad)


def to_int8(raw: Path, target: Path) -> None:
    """Quantise weights per channel to int8, activations while running. From the raw graph: ONNX Runtime fuses it when it loads it,
    and quantising what is fused already cost accuracy without gaining speed.

    Raises:
        ExportError: the graph cannot be quantised.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, exporter_kept_quiet():
        path = Path(folder) / target.name
        try:
            quantize_dynamic(raw, path, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=_is_large(raw))
        except (ValueError, RuntimeError, AttributeError, AssertionError, IndexError, TypeError) as error:
            raise ExportError(
                f"ONNX Runtime could not quantise the graph: {type(error).__name__}: {error}",
                hint="leave it out with --precision fp32,fp16",
            ) from error
        graph.save(graph.load(path), target)


def _is_large(path: Path) -> bool:
    from optimum.onnx.utils import check_model_uses_external_data

    return bool(check_model_uses_external_data(onnx.load(str(path), load_external_data=False)))
