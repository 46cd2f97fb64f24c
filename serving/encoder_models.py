"""Writes the Triton models of a package whose model answers in one execution: three steps and the ensemble, or one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from serving.artifact import sha256
from serving.bundle import REMEDY, Bundle, file_inside
from serving.description import describe
from serving.ensemble import CONFIGS, Graph, client_parameters
from serving.errors import ArtifactError, ExportError
from serving.manifests import ExpectedAnswer
from serving.model_names import is_single_model
from serving.options import Layout
from serving.pbtxt import to_pbtxt
from serving.plan import Plan
from serving.prologue import IDS, add_prologue, request_inputs
from serving.recording import record_answers
from serving.runtime.tasks._encoder import EncoderTask
from serving.runtime.types import Tensor
from serving.warmups import write_warmups

RUNTIME = Path(__file__).parent / "runtime"
PROGRAMS: dict[Layout, dict[str, str]] = {
    "ensemble": {"_preprocess": "preprocess", "_postprocess": "postprocess"},
    "fused": {"": "fused"},
}
"""By layout, the Python programs of the runtime, by the suffix of the model that runs each."""
OWN_MODULES = {
    "preprocess": ("row_preparation",),
    "postprocess": ("answering",),
    "fused": ("row_preparation", "answering", "model_session"),
}
"""Modules of the runtime that a Python step needs besides those of all steps."""
SHARED_MODULES = ("cutting", "digest", "failure_messages", "metadata", "refusals", "suggestions", "tokenization", "types")
DTYPES = {
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
}


def write_encoder_models(folder: Path, bundle: Bundle, plan: Plan, name: str) -> tuple[ExpectedAnswer, ...]:
    """Write the folders of the models.

    Args:
        folder: The folder of the models of the new generation.
        bundle: The bundle.
        plan: How it is served.
        name: Name of the ensemble of the generation, or of the single model.

    Returns:
        The answers that the server must give.
    """
    task = bundle.encoder_task
    graph = read_graph(bundle.variant(plan.precision).path, task, plan.max_batch_size)
    warmups = write_warmups(folder, bundle, plan, name, graph)
    digest, description = sha256(bundle.variant(plan.precision).path), describe(bundle, plan.device)
    parameters = client_parameters(task, model_sha256=digest, description=description)
    for model, config in CONFIGS[plan.layout](name, task, graph, plan, warmups, parameters).items():
        (folder / model / "1").mkdir(parents=True, exist_ok=True)
        (folder / model / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")
    _write_model(folder / (name if is_single_model(plan.layout) else f"{name}_model") / "1", bundle, plan)
    for suffix, program in PROGRAMS[plan.layout].items():
        version = folder / f"{name}{suffix}" / "1"
        _write_step(version, program, bundle, plan, graph)
        if task.needs_tokenizer or program != "postprocess":
            shutil.copy(bundle.tokenizer, version)
    return record_answers(bundle, plan, most_rows=graph.max_rows)


def read_graph(path: Path, task: EncoderTask, max_batch_size: int) -> Graph:
    """Read the inputs and outputs of an ONNX file that a request passes through.

    Args:
        path: The ONNX file; its weights are not read.
        task: The task, which says what outputs are read.
        max_batch_size: Maximum number of rows in a request.

    Raises:
        ArtifactError: The file is damaged.
        ExportError: An input cannot be made from text, an output is missing, or Triton has no name for the type of a tensor.
    """
    model = _load_graph(path)
    try:
        carried = request_inputs([info.name for info in model.graph.input], pair=task.pair)
    except ValueError as error:
        raise ExportError(f"{path}: {error}") from error
    outputs = {info.name: info for info in model.graph.output}
    if missing := [name for name in task.model_outputs if name not in outputs]:
        raise ExportError(f"{path} has no output {', '.join(missing)}, only {', '.join(outputs)}")
    return Graph(
        inputs=tuple(_tensor(info) for info in model.graph.input if info.name in carried),
        outputs=tuple(_tensor(outputs[name]) for name in task.model_outputs),
        max_rows=max_batch_size * task.fan_out,
    )


def _load_graph(path: Path) -> onnx.ModelProto:
    """Load an ONNX file without its external weights.

    Raises:
        ArtifactError: The file is damaged.
    """
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(f"{path} is damaged: it is not an ONNX graph", hint=REMEDY) from error


def _tensor(info: onnx.ValueInfoProto) -> Tensor:
    kind = info.type.tensor_type
    if kind.elem_type not in DTYPES:
        raise ExportError(
            f"graph tensor {info.name} has a type Triton cannot carry here: {onnx.TensorProto.DataType.Name(kind.elem_type)}"
        )
    return Tensor(info.name, DTYPES[kind.elem_type], tuple(dim.dim_value or -1 for dim in kind.shape.dim[1:]))


def _write_model(folder: Path, bundle: Bundle, plan: Plan) -> None:
    """Write the variant's graph with the prologue in front, and its external weights under their own names."""
    source = bundle.variant(plan.precision).path
    model = _load_graph(source)
    weights = _external_files(model, source.parent)
    add_prologue(model, pad_token_id=bundle.padding.get(IDS, 0), pair=bundle.encoder_task.pair, ragged=plan.batching == "ragged")
    onnx.save(model, folder / "model.onnx")
    for path in weights:
        shutil.copy(path, folder / path.name)


def _external_files(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """Return the files beside the graph that hold its weights.

    Raises:
        ArtifactError: The graph refers to a file in another place.
    """
    names = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"}
    elsewhere = sorted(name for name in names if Path(name).name != name or name == "model.onnx")
    if elsewhere:
        raise ArtifactError(
            f"the graph in {folder} keeps weights in {elsewhere[0]!r}, which is not a file of its own beside it",
            hint="do not use it unless you know who made it",
        )
    return [file_inside(folder, name) for name in sorted(names)]


def step_modules(step: str, task: str) -> list[Path]:
    """Return the files that a step of an ensemble runs: of the tasks only its own, with the helpers of all tasks.

    Args:
        step: ``preprocess``, ``postprocess`` or ``fused``.
        task: Name of the task.
    """
    shared = [RUNTIME / f"{name}.py" for name in (step, *OWN_MODULES[step], *SHARED_MODULES)]
    tasks = RUNTIME / "tasks"
    helpers = sorted(tasks.glob("_*.py"))  # __init__.py too
    return [*shared, *helpers, tasks / "base.py", tasks / f"{task.replace('-', '_')}.py"]


def _write_step(folder: Path, step: str, bundle: Bundle, plan: Plan, graph: Graph) -> None:
    """Write a Python step: a copy of the runtime, and its settings for this checkpoint."""
    (folder / "tasks").mkdir()
    for path in step_modules(step, bundle.task.name):
        shutil.copy(path, folder / ("model.py" if path.stem == step else path.relative_to(RUNTIME)))
    settings = {
        "task": bundle.task.name,
        "settings": bundle.task.to_settings(),
        "max_length": bundle.max_length,
        "model_inputs": [tensor.name for tensor in graph.inputs],
        "split_special_tokens": bundle.manifest.split_special_tokens,
        "max_model_rows": graph.max_rows,
        "parallel": plan.device == "gpu",
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
