"""The packaging stage: writes a bundle into a Triton model repository in one atomic step.

The four models of an ensemble must change together, and a rename moves only one folder. So each packaging writes a complete new
*generation* aside, and one rename of one symbolic link switches all four::

    model_repository/
      reviews                  → reviews_model/current/reviews          the ensemble: what clients call
      reviews_preprocess       → reviews_model/current/reviews_preprocess
      reviews_postprocess      → reviews_model/current/reviews_postprocess
      reviews_model/
        config.pbtxt, 1        → current/reviews_model/…
        current                → generations/4f0c…                      the link that is switched
        generations/4f0c…/       manifest.json and the four model folders

A package that is a single model (:func:`serving.layout.is_single_model`) has its generations in the folder of that model::

    model_repository/
      reviews/
        config.pbtxt, 1, …     → current/reviews/…                      the model: what clients call
        manifest.json          → current/reviews/manifest.json
        current                → generations/71ab…
        generations/71ab…/       manifest.json and the folder of the model

Triton follows the links and ignores what is no version number. At every moment the folder is one that Triton can load, also while
one kind of package replaces the other: the entry ``reviews`` is exchanged in one step. (A file system that cannot exchange entries
takes two renames; between them the repository lacks the model.)
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from serving.artifact import (
    MANIFEST,
    code_fingerprint,
    fingerprint,
    inputs_record,
    is_current,
    json_ready,
    provenance,
    read_manifest,
    sha256,
    staging_folder,
    task_code,
    write_manifest,
)
from serving.bundle import REMEDY, Bundle, file_inside, load_bundle, served_code
from serving.description import describe
from serving.ensemble import CONFIGS, Graph, client_parameters
from serving.errors import ArtifactError, ExportError
from serving.integrity import check_files
from serving.layout import CURRENT, home_name, model_home
from serving.lineage import refuse_other_package
from serving.manifests import BundleProvenance, ExpectedAnswer, RepositoryManifest, StageInputs
from serving.naming import named_for_packaging
from serving.options import Layout, PackageOptions
from serving.pbtxt import to_pbtxt
from serving.placement import is_linked, refuse_foreign, remove_earlier, staging_root, switch
from serving.plan import Plan, make_plan
from serving.prologue import IDS, add_prologue, request_inputs
from serving.recording import probe_body, record_answers
from serving.reporting import logger
from serving.runtime.tasks import served_names
from serving.runtime.tasks._encoder import EncoderTask
from serving.runtime.types import Tensor
from serving.tuning import Tuning, read_tuning
from serving.warmups import write_warmups
from serving.writing import writing

RUNTIME = Path(__file__).parent / "runtime"
SHAPING = (
    "serving/answer_comparison.py",
    "serving/description.py",
    "serving/ensemble.py",
    "serving/layout.py",
    "serving/pbtxt.py",
    "serving/placement.py",
    "serving/plan.py",
    "serving/prologue.py",
    "serving/recording.py",
    "serving/repository.py",
    "serving/undecided.py",
    "serving/warmups.py",
)
TASK_SHAPING = ("serving/runtime",)
"""The code that decides what packaging writes; of the second, not the modules of other tasks (:func:`serving.artifact.task_code`).

A repository that was written by other code is not up to date.
"""
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
SHARED_MODULES = ("cutting", "digest", "metadata", "refusals", "tokenization", "types")
STARTING = ("serving/backends/onnxruntime", "serving/server.py")
"""The code that decides how a packaged model runs, but not what packaging writes."""
DTYPES = {
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
}


@dataclass(frozen=True, kw_only=True)
class PackagedEnsemble:
    """A packaged ensemble.

    Attributes:
        manifest: Its manifest.
        unchanged: Whether it was up to date already.
    """

    manifest: RepositoryManifest
    unchanged: bool


def package(options: PackageOptions) -> PackagedEnsemble:
    """Write or replace the models of ``options.name``.

    Raises:
        ArtifactError: There is no usable bundle, it was altered, it refers to files outside it, it is older than its checkpoint, or
            one of the names belongs to another model.
        ExportError: The graph takes inputs that cannot be made from text.
    """
    options = named_for_packaging(options)
    bundle = load_bundle(options.bundle_folder)
    refuse_other_package(options, bundle)
    check_files(bundle.folder, bundle.manifest.files, remedy=REMEDY)
    bundle = bundle.with_max_length(options.max_length)
    tuning, objection = _tuning(options)
    plan = _plan(bundle, options, tuning)
    if objection is not None:
        plan = replace(plan, reasons=plan.reasons | {"configuration": f"not as tuned: {objection}"})
    if (reason := _length_reason(bundle)) is not None:
        plan = replace(plan, reasons=plan.reasons | {"max_length": reason})
    inputs = _inputs(options, bundle, plan, tuning)
    _warn_unverified(bundle)
    current = model_home(options.repository, options.name) / CURRENT
    if not options.force and is_current(current, RepositoryManifest, inputs) and is_linked(options.repository, options.name):
        remove_earlier(options.repository, options.name)
        return PackagedEnsemble(manifest=read_manifest(current, RepositoryManifest), unchanged=True)
    refuse_foreign(options.repository, options.name, plan.layout)
    options.repository.mkdir(parents=True, exist_ok=True)
    staging = staging_folder(staging_root(options.repository), f"{options.repository.name}-{options.name}")
    with writing(options.repository / options.name), staging as folder:
        generation = folder / "generation"
        generation.mkdir()
        graph = _write_generation(generation, bundle, plan, options.name)
        answers = record_answers(bundle, plan, most_rows=graph.max_rows)
        manifest = write_manifest(generation, _manifest(options, bundle, plan, inputs, answers))
        (generation / options.name / MANIFEST).symlink_to(f"../{MANIFEST}")
        switch(options.repository, options.name, generation, plan.layout)
    return PackagedEnsemble(manifest=manifest, unchanged=False)


def _length_reason(bundle: Bundle) -> str | None:
    """Describe a maximum length that is not that of the export."""
    chosen, verified = bundle.max_length, bundle.manifest.max_length
    if chosen > verified:
        return f"{chosen}, as asked: rows longer than {verified} tokens were not verified at export"
    return f"{chosen}, as asked: the export verified {verified}" if chosen < verified else None


def plan_package(options: PackageOptions) -> Plan:
    """Return the settings that :func:`package` would serve a model with.

    Raises:
        ArtifactError: There is no usable bundle.
    """
    return _plan(load_bundle(options.bundle_folder), options, _tuning(options)[0])


def _warn_unverified(bundle: Bundle) -> None:
    """Warn where the bundle was verified with other code than what is packaged with it."""
    verified, now = bundle.manifest.verified_with, served_code(bundle.task.name)
    changed = sorted(path for path in verified.keys() | now.keys() if verified.get(path) != now.get(path))
    if changed:
        logger.warning(
            f"the bundle was verified before {', '.join(changed)} changed; verify it again with: "
            f"tritonize export --name {bundle.manifest.name} --task {bundle.task.name} --force"
        )


def _inputs(options: PackageOptions, bundle: Bundle, plan: Plan, tuning: Tuning | None) -> StageInputs:
    """Return what decides the content of the repository."""
    chosen = asdict(plan) | {"name": options.name, "tuning": tuning.sha256 if tuning else None, "max_length": bundle.max_length}
    files = [bundle.folder / MANIFEST, bundle.variant(plan.precision).path, bundle.tokenizer]
    code = shaping_code(bundle.task.name)
    return inputs_record(chosen, fingerprint(files, root=bundle.folder), code)


def _manifest(
    options: PackageOptions, bundle: Bundle, plan: Plan, inputs: StageInputs, answers: tuple[ExpectedAnswer, ...]
) -> RepositoryManifest:
    variant = bundle.variant(plan.precision)
    content = {
        **provenance(inputs),
        **asdict(plan),
        "name": options.name,
        "task": bundle.task.name,
        "settings": json_ready(bundle.task.to_settings()),
        "max_length": bundle.max_length,
        "probe": probe_body(bundle.task.example),
        "answers": answers,
        "bundle": BundleProvenance(manifest=bundle.manifest.inputs, figures=variant.figures, name=bundle.manifest.name),
    }
    return RepositoryManifest.model_validate(content)


def shaping_code(task: str) -> dict[str, str]:
    """Return the SHA-256 of the code that decides what packaging writes for a task, by path."""
    return code_fingerprint([*SHAPING, *task_code(TASK_SHAPING, task, served_names())])


def serving_code() -> dict[str, str]:
    """Return the SHA-256 of the code that decides how fast an ensemble answers, by path.

    The tasks are left out: they decide what the answers are, and the tuner chooses how the model between them runs.
    """
    steps = [path for path in task_code(TASK_SHAPING, "", served_names()) if "/tasks/" not in path]
    return code_fingerprint([*SHAPING, *steps, *STARTING])


def _tuning(options: PackageOptions) -> tuple[Tuning | None, str | None]:
    """Read the bundle's tuning; a model whose tuning cannot be read is packaged without it.

    Returns:
        The tuning, if there is one that can be read, and otherwise why it cannot be read.
    """
    if not options.tuned:
        return None, None
    try:
        return read_tuning(options.bundle_folder), None
    except ArtifactError as error:
        return None, error.message


def _plan(bundle: Bundle, options: PackageOptions, tuning: Tuning | None) -> Plan:
    return make_plan(
        bundle,
        precision=options.precision,
        device=options.device,
        batching=options.batching,
        instances=options.instances,
        threads=options.threads,
        max_batch_size=options.max_batch_size,
        queue_delay_us=options.queue_delay_us,
        layout=options.layout,
        preprocess_instances=options.preprocess_instances,
        postprocess_instances=options.postprocess_instances,
        tuning=tuning,
    )


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


def _write_generation(folder: Path, bundle: Bundle, plan: Plan, name: str) -> Graph:
    """Write the folders of the models, and return the inputs and outputs of the graph."""
    task = bundle.encoder_task
    graph = read_graph(bundle.variant(plan.precision).path, task, plan.max_batch_size)
    warmups = write_warmups(folder, bundle, plan, name, graph)
    digest, description = sha256(bundle.variant(plan.precision).path), describe(bundle, plan.device)
    parameters = client_parameters(task, model_sha256=digest, description=description)
    for model, config in CONFIGS[plan.layout](name, task, graph, plan, warmups, parameters).items():
        (folder / model / "1").mkdir(parents=True, exist_ok=True)
        (folder / model / "config.pbtxt").write_text(to_pbtxt(config), encoding="utf-8")
    _write_model(folder / home_name(name, plan.layout) / "1", bundle, plan)
    for suffix, program in PROGRAMS[plan.layout].items():
        version = folder / f"{name}{suffix}" / "1"
        _write_step(version, program, bundle, plan, graph)
        if task.needs_tokenizer or program != "postprocess":
            shutil.copy(bundle.tokenizer, version)
    return graph


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
