"""Load, save and run ONNX graphs, also with all intermediate tensors visible."""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from serving.errors import ExportError, SetupError, first_line
from serving.runtime.types import Arrays

EXTERNAL_ABOVE = 2**31 - 2**26
"""Size of the weights in bytes above which they are saved as external data, because protobuf is limited to 2 GiB."""

FAILURES = (
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NotImplemented,
    errors.RuntimeException,
)
"""What ONNX Runtime raises about a graph or its inputs."""


def load(path: Path) -> onnx.ModelProto:
    """Load a model with all of its weights."""
    return onnx.load(str(path))


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, with its weights in ``<path>.data`` if they do not fit into one protobuf.

    The model refers to that file by name, so keep both names and move the files together.

    Args:
        model: The model.
        path: The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > EXTERNAL_ABOVE:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save_model(model, str(path))


def size(path: Path) -> int:
    """Return the size of a model in bytes, including external data."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def session(path: Path, *, providers: Sequence[Any] = ("CPUExecutionProvider",), threads: int = 0, optimize: bool = True) -> Any:
    """Create an ``onnxruntime.InferenceSession``.

    Args:
        path: The model.
        providers: Execution providers by priority, as names or pairs of a name and its options. All of them must load.
        threads: Number of intra-op threads; 0: one per core.
        optimize: Let ONNX Runtime optimize the graph, as it does when serving.

    Returns:
        The session.

    Raises:
        SetupError: ONNX Runtime could not load a provider.
        ExportError: ONNX Runtime cannot run the graph.
    """
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    if "CUDAExecutionProvider" in names:
        _preload_cuda()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # fatal errors; all others are raised
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        running = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    except FAILURES as error:
        raise ExportError(f"ONNX Runtime cannot load {path.name}: {type(error).__name__}: {str(error)[:400]}") from error
    loaded = running.get_providers()
    if missing := [name for name in names if name not in loaded]:
        # ONNX Runtime falls back to the CPU and only logs it
        raise SetupError(
            f"ONNX Runtime could not load {missing[0]}, only {', '.join(loaded)}",
            hint="give --device cpu, or see: tritonize doctor",
        )
    return running


@functools.cache
def _preload_cuda() -> None:
    """Load CUDA's libraries from their wheels, which are not on the search path of the dynamic loader."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints the libraries that it could not load
        onnxruntime.preload_dlls()


def runner(running: Any, outputs: Sequence[str]) -> Callable[[Arrays], Arrays]:
    """Wrap a session as a function from model inputs to outputs by name.

    Args:
        running: The :func:`session`.
        outputs: Names of the outputs to compute.

    Returns:
        The function. It raises an ExportError if ONNX Runtime cannot run the graph on its inputs.
    """

    def run(feed: Arrays) -> Arrays:
        try:
            return dict(zip(outputs, running.run(list(outputs), feed), strict=True))
        except FAILURES as error:
            raise ExportError(f"ONNX Runtime cannot run the graph: {first_line(error)[:400]}") from error

    return run


def intermediates(model: onnx.ModelProto, feeds: Sequence[Arrays]) -> Iterator[Arrays]:
    """Run a model and yield its intermediate floating-point tensors.

    Args:
        model: The model.
        feeds: Model inputs, one batch each.

    Yields:
        The tensors of one batch by name, including the model's outputs.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {output.name for output in exposed.graph.output}
    names = [name for node in exposed.graph.node for name in node.output if name and name not in known]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exposed.onnx"
        save(exposed, path)
        running = session(path, optimize=False)
        outputs = [output.name for output in running.get_outputs()]
        for feed in feeds:
            values = zip(outputs, running.run(outputs, feed), strict=True)
            yield {name: value for name, value in values if isinstance(value, np.ndarray) and value.dtype.kind == "f"}


def input_names(path: Path) -> list[str]:
    """List the names of a model's inputs in order."""
    model = onnx.load(str(path), load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    return [tensor.name for tensor in model.graph.input if tensor.name not in weights]


def remove_token_types(path: Path) -> None:
    """Replace the input ``token_type_ids`` of a raw graph by zeros, which a model uses if it is not given any."""
    model = load(path)
    zero = onnx.helper.make_tensor("no_token_types/zero", onnx.TensorProto.INT64, [], [0])
    zeros = onnx.helper.make_node("Mul", ["input_ids", zero.name], ["token_type_ids"], name="no_token_types")
    (types,) = [tensor for tensor in model.graph.input if tensor.name == "token_type_ids"]
    model.graph.input.remove(types)
    model.graph.initializer.append(zero)
    model.graph.node.insert(0, zeros)
    onnx.checker.check_model(model)
    save(model, path)


def precision(path: Path) -> str:
    """Return the precision of a graph's floating-point weights: ``fp32``, ``fp16``, or both joined by ``+``."""
    model = onnx.load(str(path), load_external_data=False)
    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}
    found = {names[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in names}
    return "+".join(sorted(found, reverse=True))
