"""Writes the one Triton model of a package that generates: tokenizer, engine and detokenizer in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from serving.artifact import sha256
from serving.bundle import Bundle
from serving.description import describe
from serving.ensemble import Config, Warmup, client_parameters, tensor_config, warmup_config
from serving.generation_recording import record_generation
from serving.manifests import ExpectedAnswer
from serving.pbtxt import to_pbtxt
from serving.plan import Plan
from serving.runtime.digest import DIGEST, TRUNCATED
from serving.runtime.generation.engine_settings import EngineSettings
from serving.runtime.tasks._generation import GenerationTask
from serving.runtime.types import Tensor
from serving.warmups import bytes_tensor, save_warmup

RUNTIME = Path(__file__).parent / "runtime"
SHARED_MODULES = (
    "cutting",
    "digest",
    "failure_messages",
    "metadata",
    "model_session",
    "refusals",
    "row_preparation",
    "suggestions",
    "tokenization",
    "types",
)
"""Modules of the runtime that the model needs besides the packages ``generation`` and ``tasks``."""
TEMPLATE = "chat_template.jinja"


def write_generating_model(folder: Path, bundle: Bundle, plan: Plan, name: str) -> tuple[ExpectedAnswer, ...]:
    """Write the folder of the model.

    Args:
        folder: The folder of the models of the new generation.
        bundle: The bundle.
        plan: How it is served.
        name: Name of the model.

    Returns:
        The answers that the server must give.
    """
    task, version = bundle.generation_task, folder / name / "1"
    version.mkdir(parents=True)
    graphs = bundle.variant(plan.precision).path.parent
    for path in graphs.iterdir():
        shutil.copy(path, version)
    parameters = client_parameters(
        task, model_sha256=sha256(bundle.variant(plan.precision).path), description=describe(bundle, plan.device)
    )
    config = to_pbtxt(generating_config(name, task, plan, parameters, _warmup(folder / name, task)))
    (folder / name / "config.pbtxt").write_text(config, encoding="utf-8")
    _write_program(version, bundle, plan)
    return record_generation(version, bundle, plan)


def generating_config(name: str, task: GenerationTask, plan: Plan, parameters: Mapping[str, str], warmup: Warmup) -> Config:
    """Configure the model. One that streams is decoupled: it answers a request as often as it likes."""
    tensors = (*task.inputs(), *task.optional_inputs())
    inputs = [tensor_config(tensor) for tensor in task.inputs()]
    inputs += [tensor_config(tensor) | {"optional": True} for tensor in task.optional_inputs()]
    config: Config = {
        "name": name,
        "backend": "python",
        "max_batch_size": 0 if task.streams else plan.max_batch_size,
        "input": inputs,
        "output": [tensor_config(tensor) for tensor in _outputs(task)],
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "model_warmup": [warmup_config(warmup, [tensor for tensor in tensors if tensor.name in warmup.files])],
    }
    if task.streams:
        config["model_transaction_policy"] = {"decoupled": True}
    return config


def _outputs(task: GenerationTask) -> tuple[Tensor, ...]:
    """Return the outputs of the model: those of the task, and what it tells of every row."""
    truncated = () if task.streams else (Tensor(TRUNCATED, "TYPE_BOOL"),)
    return (*task.outputs(), *truncated, Tensor(DIGEST, "TYPE_INT64"))


def _warmup(folder: Path, task: GenerationTask) -> Warmup:
    """Write a request that computes everything once: for one token, or an encoder-decoder's whole answer to one word."""
    texts = {name: text.split()[0] for name, text in task.example.items()}  # any model takes one word
    if "sampling_parameters" in {tensor.name for tensor in task.optional_inputs()}:
        texts["sampling_parameters"] = json.dumps({"max_new_tokens": 1})
    payloads = {name: bytes_tensor(text.encode()) for name, text in texts.items()}
    return save_warmup(folder, "short", 0 if task.streams else 1, payloads, dict.fromkeys(payloads, (1,)))


def engine_settings(bundle: Bundle, plan: Plan) -> EngineSettings:
    """Return the settings of the engine."""
    if plan.capacity is None:
        raise TypeError(f"{bundle.folder}: the plan is not one of a model that generates")
    return EngineSettings(slots=plan.max_batch_size, capacity=plan.capacity, threads=plan.threads)


def _write_program(folder: Path, bundle: Bundle, plan: Plan) -> None:
    """Write what the Python backend runs: a copy of the runtime, and its settings for this checkpoint."""
    task = bundle.generation_task
    for path in program_modules(task):
        target = folder / ("model.py" if path.stem == task.program else path.relative_to(RUNTIME))
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(bundle.tokenizer, folder)
    if (bundle.folder / TEMPLATE).is_file():
        shutil.copy(bundle.folder / TEMPLATE, folder)
    settings = {
        "task": task.name,
        "settings": task.to_settings(),
        "max_length": bundle.max_length,
        "split_special_tokens": bundle.manifest.split_special_tokens,
        "engine": asdict(engine_settings(bundle, plan)),
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def program_modules(task: GenerationTask) -> list[Path]:
    """Return the files that the model of a task runs."""
    tasks = RUNTIME / "tasks"
    shared = [RUNTIME / f"{name}.py" for name in (task.program, *SHARED_MODULES)]
    own = [tasks / "base.py", tasks / f"{task.name.replace('-', '_')}.py", *sorted(tasks.glob("_*.py"))]
    return [*shared, *own, *sorted((RUNTIME / "generation").glob("*.py"))]
