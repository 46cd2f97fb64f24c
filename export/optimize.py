"""Optimize an fp32 graph to fused fp32, fp16 and int8. Every failure is raised or recorded."""

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
from export.convert import silence_exporters
from serving.errors import ExportError, first_line
from serving.runtime.types import Arrays

FP16_MAX = 65504.0
"""Largest finite fp16 number."""
HEADROOM = 0.5
"""Nodes stay in fp32 if a value exceeds this share of :data:`FP16_MAX`, because other rows may produce larger values."""
INTERNAL_SUMS = {"SkipLayerNormalization": (0, 1, 3), "EmbedLayerNormalization": (2, 3, 4)}
"""Fused operators that add the inputs with these indices internally (the latter adds rows of its tables).

The sum is not an intermediate tensor of the graph, so its size is estimated from the inputs.
"""


def fuse(raw: Path, checkpoint: Path, target: Path) -> str:
    """Fuse attention, layer normalization and activations with ONNX Runtime's transformer optimizer at level 1.

    Level 1 does not depend on the execution provider. Attention keeps its raw mask, because the default fusion reads the mask as
    a number of leading tokens, which is wrong with left padding. A graph whose architecture the optimizer does not support is
    copied unchanged.

    Args:
        raw: The graph as it was exported.
        checkpoint: Folder of the checkpoint.
        target: File to write.

    Returns:
        ``onnxruntime``, or ``none: <reason>``.

    Raises:
        ExportError: The optimizer failed on an architecture that it supports.
    """
    from optimum.onnxruntime import ORTOptimizer
    from optimum.onnxruntime.configuration import OptimizationConfig

    config = OptimizationConfig(
        optimization_level=1, optimize_for_gpu=False, use_raw_attention_mask=True, disable_embed_layer_norm_fusion=False
    )
    with tempfile.TemporaryDirectory() as folder, silence_exporters():
        try:
            # without from_ortmodel it deletes the external data of the input graph
            optimizer = ORTOptimizer([raw], _config(checkpoint), from_ortmodel=True)
            optimizer.optimize(config, save_dir=folder, file_suffix="")
        except NotImplementedError as error:  # Optimum does not support the architecture
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
    """Count the fused operators of a graph (domain ``com.microsoft``) by type."""
    model = onnx.load(str(path), load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft")
    return dict(sorted(counts.items()))


def to_fp16(fused: Path, target: Path, feeds: Sequence[Arrays]) -> list[str]:
    """Cast the fused graph to fp16.

    Inputs and outputs, nodes that could overflow, and nodes that compute indices stay in fp32.

    Args:
        fused: The fused fp32 graph.
        target: File to write.
        feeds: Model inputs of real rows, one batch each, on which the activations are measured.

    Returns:
        Names of the nodes that stay in fp32, in graph order.

    Raises:
        ExportError: The graph cannot be cast.
    """
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = graph.load(fused)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_unnamed_{index}"
    tensor_peaks = peaks(model, feeds)
    selected = overflowing_nodes(model, tensor_peaks) | indexing_nodes(model, tensor_peaks)
    fp32_nodes = [node.name for node in model.graph.node if node.name in selected]
    casting = OnnxModel(model)
    with silence_exporters():
        try:
            casting.convert_float_to_float16(keep_io_types=True, node_block_list=fp32_nodes)
        except (ValueError, RuntimeError, AttributeError, AssertionError, IndexError, TypeError) as error:
            raise ExportError(
                f"ONNX Runtime could not cast the graph to fp16: {type(error).__name__}: {error}",
                hint="leave it out with --precision fp32,int8",
            ) from error
    casting.topological_sort()
    graph.save(casting.model, target)
    return fp32_nodes


def peaks(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> dict[str, float]:
    """Measure the largest magnitude of every floating-point tensor of a model, including weights.

    Args:
        model: The model.
        feeds: Model inputs, one batch each.

    Returns:
        The magnitude by name of the tensor.
    """
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
    """Find the nodes with an input, output or internal sum that is too close to the fp16 limit.

    Unfused attention adds such a value as its mask, so its masking and softmax stay in fp32.

    Args:
        model: The model.
        tensor_peaks: Largest magnitude by name of the tensor (see :func:`peaks`).

    Returns:
        Names of the nodes.
    """
    limit = HEADROOM * FP16_MAX
    nodes = set()
    for node in model.graph.node:
        node_peaks = [tensor_peaks.get(name, 0.0) for name in (*node.input, *node.output)]
        summed = sum(tensor_peaks.get(node.input[i], 0.0) for i in INTERNAL_SUMS.get(node.op_type, ()) if i < len(node.input))
        if max(node_peaks, default=0.0) >= limit or summed >= limit:
            nodes.add(node.name)
    return nodes


def indexing_nodes(model: onnx.ModelProto, floats: Container[str]) -> set[str]:
    """Find the nodes whose floating-point result is cast to an index, such as the bucket of a relative position.

    In fp16, a logarithm just below 3 is rounded to 3, which selects another bucket.

    Args:
        model: The model.
        floats: Names of the model's floating-point tensors.

    Returns:
        Names of the nodes.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    integer_types = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    pending = [
        node
        for node in model.graph.node
        if node.op_type == "Cast"
        and node.input[0] in floats
        and any(attribute.name == "to" and attribute.i in integer_types for attribute in node.attribute)
    ]
    nodes: set[str] = set()
    while pending:
        node = pending.pop()
        if node.name not in nodes:
            nodes.add(node.name)
            pending += [producers[name] for name in node.input if name in floats and name in producers]
    return nodes


def overflowed_tensors(fp16: Path, fp32: Path, feeds: Sequence[Arrays]) -> list[str]:
    """Find the fp16 tensors of a graph that are NaN or infinite where those of the fp32 graph are finite.

    A CPU computes fp16 operators in fp32, so the outputs alone may not show an overflow. The tensors between operators are fp16.

    Args:
        fp16: The fp16 graph.
        fp32: The fp32 graph that it was cast from.
        feeds: Model inputs, one batch each.

    Returns:
        Names of the tensors in alphabetical order.
    """
    overflowed = set()
    pairs = zip(graph.intermediates(graph.load(fp16), feeds), graph.intermediates(graph.load(fp32), feeds), strict=True)
    for half, full in pairs:
        for name, value in half.items():
            broken = ~np.isfinite(value) & (value.dtype == np.float16)
            if name in full and full[name].shape == value.shape:
                broken &= np.isfinite(full[name])
            if broken.any():
                overflowed.add(name)
    return sorted(overflowed)


def to_int8(raw: Path, target: Path, *, operators: Sequence[str] | None = None) -> None:
    """Quantize a graph to int8: weights per channel, activations dynamically.

    The input is the raw graph, because ONNX Runtime fuses the result when it loads it, and quantizing a fused graph lost accuracy
    without gaining speed.

    Args:
        raw: The graph as it was exported.
        target: File to write.
        operators: Types of the operators to quantize; None: all that ONNX Runtime can.

    Raises:
        ExportError: The graph cannot be quantized.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, silence_exporters():
        path = Path(folder) / target.name
        try:
            quantize_dynamic(
                raw,
                path,
                op_types_to_quantize=operators,
                per_channel=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=_is_large(raw),
            )
        except (ValueError, RuntimeError, AttributeError, AssertionError, IndexError, TypeError) as error:
            raise ExportError(
                f"ONNX Runtime could not quantize the graph: {type(error).__name__}: {error}",
                hint="leave it out with --precision fp32,fp16",
            ) from error
        graph.save(graph.load(path), target)


def _is_large(path: Path) -> bool:
    from optimum.onnx.utils import check_model_uses_external_data

    return bool(check_model_uses_external_data(onnx.load(str(path), load_external_data=False)))
