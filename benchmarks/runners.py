"""One way of answering, loaded and timed in a process of its own: ``python -m benchmarks.runners``.

The process reads a :class:`Job` as one JSON line, loads it and says ``{"ready": …}``. Each further line is a :class:`Slice`, which
it times and answers with ``{"spans": …}``; in between it sleeps. The line ``end`` is the last, answered with ``{"facts": …}``.
Nothing heavy is imported before the job is read: load time and memory are those of the way of answering alone.
:mod:`benchmarks.workers` is the other end.
"""

from __future__ import annotations

import inspect
import itertools
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.logits import KeptOutputs
from serving.artifact import sha256
from serving.errors import ArtifactError
from serving.machine import cores

if TYPE_CHECKING:
    from serving.bundle import Bundle
    from serving.runtime.tasks.base import Arrays, Options

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}
TENSORRT = "TensorrtExecutionProvider"
TORCH_PRECISIONS = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}

Rows = Sequence[Sequence[str]]
"""Rows of requests, each the strings of the task's inputs in order."""

Span = tuple[int, int]
"""Start and end of one call, ns on a clock that all processes share."""

END = "end"
WARM_UP = 0.1
"""Share of a slice that is spent on calls before it, untimed: the process slept while others had their turn."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one worker process is to load.

    Args:
        backend: a key of :data:`BACKENDS`.
        source: the checkpoint folder, or the ONNX file.
        bundle: the bundle whose task, tokenizer and ``max_length`` apply.
        device: ``cpu`` or ``gpu``.
        half: run in the device's best half precision (PyTorch), or let TensorRT use fp16.
        threads: threads of one operator; None leaves the library's own choice.
        most_rows: rows of the largest call that will be made.
        first: the row that is asked when all is loaded: a list of strings in the order of the task's inputs.
        labelled: rows answered one by one before anything is timed: they give the answers to judge, and warm up.
        logits: file to write what the model says of those rows to (``.npz``); None for none.
    """

    backend: str
    source: str
    bundle: str
    device: str
    half: bool = False
    threads: int | None = None
    most_rows: int
    first: list[str]
    labelled: list[list[str]]
    logits: str | None = None


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What a worker is to time next.

    Args:
        rows: one list of strings per row, as in :class:`Job`.
        batch: rows per call.
        seconds: whole passes over ``rows`` are made until they are over.
    """

    rows: list[list[str]]
    batch: int
    seconds: float


def to_json(line: Job | Slice) -> str:
    """As the worker reads it."""
    return json.dumps(asdict(line))


class Runner(Protocol):
    """A loaded model: rows of requests in, answers out, tokenization included."""

    file: Path
    """What was loaded: its checksum tells which variant ran."""
    threads: int
    """Threads of one operator, as the library reports them."""
    said: Arrays
    """What the model itself said last, by output; empty where a library keeps that to itself."""

    def __call__(self, rows: Rows) -> Any:
        """Answer a batch: the tensors of the task's outputs, or a list where the library has a form of its own."""

    def judged(self, rows: Rows) -> Any:
        """Answer a batch as the task is judged by."""

    def precision(self) -> str:
        """What the loaded model really computes in, for those that know it (``fp32``, ``fp16``, ``bf16``), else empty."""


class _AsServed(ABC):
    """A model between the first and the last step of the ensemble, without Triton."""

    def __init__(self, bundle: Bundle, names: list[str]) -> None:
        """``names``: the model's inputs."""
        from tokenizers import Tokenizer

        self._task = bundle.task
        self._encoder = bundle.encoder(names)
        self._tokenizer = Tokenizer.from_file(str(bundle.tokenizer)) if bundle.task.needs_tokenizer else None
        self.said: Arrays = {}
        self._plainly = bundle.task.request_options({})
        self._to_judge = bundle.task.request_options(bundle.task.judged_options)

    @abstractmethod
    def _run(self, feed: Arrays) -> Arrays:
        """Model inputs ``[model rows, longest]`` → ``outputs_read`` by name."""

    def __call__(self, rows: Rows) -> Arrays:
        return self._answered(rows, self._plainly)

    def judged(self, rows: Rows) -> Arrays:
        return self._answered(rows, self._to_judge)

    def _answered(self, rows: Rows, options: Options) -> Arrays:
        columns = [list(column) for column in zip(*rows, strict=True)]
        features = self._task.features(columns, self._encoder, options)
        outputs = self._run(self._encoder.arrays(features.encodings))
        self.said = outputs
        found = self._task.worded_answers(outputs, features.origins, options, self._tokenizer)
        return {tensor.name: found[tensor.name] for tensor in self._task.outputs()}


class PyTorch(_AsServed):
    """The original: ``transformers`` eager, tokenized as for every other way of answering."""

    def __init__(self, job: Job, bundle: Bundle) -> None:
        import torch
        import transformers

        from serving.runtime.tokenization import FIELDS

        self._torch = torch
        self._device = "cuda" if job.device == "gpu" else "cpu"
        # On a GPU the weights themselves become half; on a CPU autocast keeps what bfloat16 cannot hold in fp32.
        weights = torch.float16 if job.half and job.device == "gpu" else torch.float32
        self._autocast = job.half and job.device == "cpu"
        auto = getattr(transformers, bundle.task.auto_model)
        model = auto.from_pretrained(job.source, dtype=weights, use_safetensors=True, trust_remote_code=False)
        self._model = self._prepared(model.eval().to(self._device))
        taken = inspect.signature(model.forward).parameters
        super().__init__(bundle, [name for name in FIELDS if name in taken])
        self._dtype = ""
        self.file = weights_file(Path(job.source))
        self.threads = torch.get_num_threads()

    def _prepared(self, model: Any) -> Any:
        return model

    def _run(self, feed: Arrays) -> Arrays:
        torch = self._torch
        tensors = {name: torch.from_numpy(array).to(self._device) for name, array in feed.items()}
        if self._task.grouped:  # each row in a group of its own, as in the graph
            tensors = {name: tensor.unsqueeze(1) for name, tensor in tensors.items()}
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._autocast):
            outputs = self._model(**tensors)
        heads = {name: outputs[name] for name in self._task.heads}
        self._dtype = str(next(iter(heads.values())).dtype)
        return self._task.reduced({name: head.float().cpu().numpy() for name, head in heads.items()}, feed)

    def precision(self) -> str:
        return TORCH_PRECISIONS[self._dtype]


class Compiled(PyTorch):
    """The original through ``torch.compile``, compiled once for rows of any length."""

    def _prepared(self, model: Any) -> Any:
        return self._torch.compile(model, dynamic=True)

    def _run(self, feed: Arrays) -> Arrays:
        outputs = super()._run(feed)
        if not self._torch._dynamo.utils.counters["stats"]["unique_graphs"]:  # torch goes on without, and says nothing
            raise RuntimeError("torch.compile compiled no graph of this model")
        return outputs


class TransformersPipeline:
    """``transformers.pipeline``, as most people run a checkpoint."""

    def __init__(self, job: Job, bundle: Bundle) -> None:
        import torch
        import transformers

        self._task = bundle.task
        self._pipeline = transformers.pipeline(bundle.task.name, model=job.source, device=0 if job.device == "gpu" else "cpu")
        _leave_out_unknown(self._pipeline.tokenizer, self._pipeline.model)
        self._max_length = bundle.max_length
        self.said: Arrays = {}
        self.file = weights_file(Path(job.source))
        self.threads = torch.get_num_threads()

    def __call__(self, rows: Rows) -> list[Any]:
        return self._task.ask_pipeline(self._pipeline, rows, max_length=self._max_length)

    def judged(self, rows: Rows) -> list[Any]:
        return self(rows)

    def precision(self) -> str:
        return TORCH_PRECISIONS[str(self._pipeline.model.dtype)]


class OnnxRuntime(_AsServed):
    """An ONNX variant with the tokenizer and the answers that run inside Triton, without Triton."""

    def __init__(self, job: Job, bundle: Bundle) -> None:
        import onnxruntime

        if job.device == "gpu":
            onnxruntime.preload_dlls()  # CUDA's libraries lie in wheels, where the loader does not look
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads or 0
        providers = self._providers(job, bundle)
        self._session = onnxruntime.InferenceSession(job.source, options, providers=providers)
        wanted = providers[0][0]
        if wanted not in self._session.get_providers():  # onnxruntime falls back to the CPU with no more than a log line
            raise RuntimeError(f"onnxruntime could not load {wanted}")
        super().__init__(bundle, [node.name for node in self._session.get_inputs()])
        self.file = Path(job.source)
        self.threads = job.threads or cores()

    def _providers(self, job: Job, bundle: Bundle) -> list[tuple[str, dict[str, str]]]:  # noqa: ARG002 - others look at it
        """Where to run, by preference, each with its options."""
        return [(PROVIDERS[job.device], {})]

    def _run(self, feed: Arrays) -> Arrays:
        names = self._task.outputs_read
        return dict(zip(names, self._session.run(list(names), feed), strict=True))

    def precision(self) -> str:
        return ""  # the bundle's manifest knows, by the file's checksum


class TensorRT(OnnxRuntime):
    """An ONNX variant compiled by TensorRT, one engine for every batch and length that will be asked."""

    def _providers(self, job: Job, bundle: Bundle) -> list[tuple[str, dict[str, str]]]:
        from export.graph import input_names

        names = input_names(Path(job.source))

        def shapes(rows: int, tokens: int) -> str:
            return ",".join(f"{name}:{rows}x{tokens}" for name in names)

        profile = {
            "trt_profile_min_shapes": shapes(1, 1),
            "trt_profile_opt_shapes": shapes(job.most_rows * bundle.task.fan_out, bundle.max_length // 2),
            "trt_profile_max_shapes": shapes(job.most_rows * bundle.task.fan_out, bundle.max_length),
            "trt_fp16_enable": str(job.half),
        }
        return [(TENSORRT, profile), (PROVIDERS["gpu"], {})]


BACKENDS: dict[str, Callable[[Job, Bundle], Runner]] = {
    "pytorch": PyTorch,
    "compiled": Compiled,
    "pipeline": TransformersPipeline,
    "exported": OnnxRuntime,
    "onnx": OnnxRuntime,
    "tensorrt": TensorRT,
}


def _leave_out_unknown(tokenizer: Any, model: Any) -> None:
    """Some tokenizers make tensors that their model does not take, such as ``token_type_ids`` for DistilBERT."""
    taken = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]


def weights_file(checkpoint: Path) -> Path:
    """The file that stands for a checkpoint's weights: the weights, or the index of their shards.

    Raises:
        ArtifactError: the folder holds no weights.
    """
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (checkpoint / name).is_file():
            return checkpoint / name
    raise ArtifactError(f"{checkpoint} holds no safetensors weights", hint="make a checkpoint with: tritonize finetune")


def timed_passes(runner: Callable[[Rows], object], rows: Rows, batch: int, seconds: float) -> list[Span]:
    """Call ``runner`` over ``rows``, ``batch`` at a time, again and again until ``seconds`` are over and a pass is whole.

    Every call carries ``batch`` rows: one that reaches the end goes on from the beginning. Passes are always whole (to within such
    a call), so that every way of answering is timed on the same mix of lengths.
    """
    stream = itertools.cycle(rows)
    spans: list[Span] = []
    deadline = time.perf_counter_ns() + round(seconds * 1e9)
    while True:
        call = list(itertools.islice(stream, batch))
        started = time.perf_counter_ns()
        runner(call)
        spans.append((started, time.perf_counter_ns()))
        ended_a_pass = len(spans) * batch % len(rows) < batch
        if ended_a_pass and spans[-1][1] >= deadline:
            return spans


def peak_rss_mib() -> float:
    """Largest resident set this process has had, MiB.

    Not ``ru_maxrss``: that one is inherited from the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


class Worker:
    """A job, loaded: it has answered its labelled rows, and is ready to be timed.

    Args:
        started: when this process began, ns of ``time.perf_counter_ns``.
    """

    def __init__(self, job: Job, started: int) -> None:
        from serving.bundle import load_bundle

        bundle = load_bundle(Path(job.bundle))
        self._job = job
        self._runner = BACKENDS[job.backend](job, bundle)
        loaded = time.perf_counter_ns()
        self._load_seconds = (loaded - started) / 1e9
        self._runner([job.first])
        self._first_answer_seconds = (time.perf_counter_ns() - loaded) / 1e9
        said = KeptOutputs()
        self._answers = []
        for row in job.labelled:
            self._answers.append(self._runner.judged([row]))
            said.add(self._runner.said)
        if job.logits is not None:
            said.write(Path(job.logits))

    def time(self, wanted: Slice) -> list[Span]:
        """Make one slice: start and end of every call."""
        timed_passes(self._runner, wanted.rows[: wanted.batch], wanted.batch, WARM_UP * wanted.seconds)
        return timed_passes(self._runner, wanted.rows, wanted.batch, wanted.seconds)

    def facts(self) -> dict[str, Any]:
        """``file``, ``sha256``, ``precision``, ``threads``, ``load_seconds`` (from an empty process to a loaded model),
        ``first_answer_seconds`` (after that), ``peak_rss_mib``, ``gpu_memory_mib`` and ``answers`` to the labelled rows.
        """
        return {
            "file": str(self._runner.file),
            "sha256": sha256(self._runner.file),
            "precision": self._runner.precision(),
            "threads": self._runner.threads,
            "load_seconds": self._load_seconds,
            "first_answer_seconds": self._first_answer_seconds,
            "peak_rss_mib": peak_rss_mib(),
            "gpu_memory_mib": _gpu_memory_mib(self._job),
            "answers": _told(self._answers),
        }


def _told(answers: list[Any]) -> Any:
    """Answers to one row each, ready for JSON: tensors by name, or the items of a library's own form."""
    if answers and isinstance(answers[0], dict):
        from benchmarks.answers import joined, to_json

        return to_json(joined(answers))
    return [item for row in answers for item in row]


def _gpu_memory_mib(job: Job) -> float | None:
    if job.device != "gpu":
        return None
    from benchmarks.machine import gpu_memory_mib

    return gpu_memory_mib([os.getpid()])


def main() -> int:
    """Serve one job over standard input and output; libraries that print go to standard error instead."""
    started = time.perf_counter_ns()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = Job(**json.loads(sys.stdin.readline()))

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message, default=float) + "\n")  # a pipeline's scores may be numpy's
        channel.flush()

    worker = Worker(job, started)
    say({"ready": {}})
    for line in iter(sys.stdin.readline, ""):
        if line.strip() == END:
            say({"facts": worker.facts()})
            return 0
        say({"spans": worker.time(Slice(**json.loads(line)))})
    return 1  # the benchmark is gone: nobody wants the figures


if __name__ == "__main__":
    sys.exit(main())
