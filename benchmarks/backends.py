"""Backends that run in process: PyTorch, ``transformers``' pipeline, ONNX Runtime.

Each imports its own library when it loads, and nothing else: load time and memory are measured. For that reason they share neither
:func:`export.graph.session` (imports onnx) nor :func:`export.original.original_run` (imports ONNX Runtime).
"""

from __future__ import annotations

import importlib.util
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.jobs import RequestRows, WorkerJob
from export.tasks import bundle_task
from serving.errors import ArtifactError
from serving.machine import cores

if TYPE_CHECKING:
    from serving.bundle import Bundle
    from serving.runtime.tasks._encoder import EncoderTask
    from serving.runtime.types import Arrays

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}
TENSORRT = "TensorrtExecutionProvider"
TORCH_PRECISIONS = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


class _AsServed(ABC):
    """A model between the first and the last step of the ensemble, without Triton: rows of requests in, answers out.

    Attributes:
        file: The file that was loaded; its checksum tells which variant ran.
        threads: Threads of one operator, as the library reports them.
        outputs: The model's outputs of the last call by name; empty if the library does not return them.
    """

    file: Path
    threads: int

    def __init__(self, bundle: Bundle, names: list[str]) -> None:
        """Prepare tokenization and answers for a model with the inputs ``names``."""
        self._task = bundle_task(bundle)
        self._encoder = bundle.encoder(names)
        self.outputs: Arrays = {}

    @abstractmethod
    def _run(self, feed: Arrays) -> Arrays:
        """Model inputs ``[model rows, longest]`` → ``model_outputs`` by name."""

    @abstractmethod
    def precision(self) -> str:
        """Name the precision that the model computes in (``fp32``, ``fp16``, ``bf16``); empty if the library does not tell."""

    def __call__(self, rows: RequestRows) -> Arrays:
        """Answer a batch: the tensors of the task's outputs."""
        return self._answer(rows, self._task.served)

    def evaluate(self, rows: RequestRows) -> Arrays:
        """Answer a batch with the options that quality is measured with."""
        return self._answer(rows, self._task.evaluated)

    def _answer(self, rows: RequestRows, task: EncoderTask) -> Arrays:
        columns = [list(column) for column in zip(*rows, strict=True)]
        features = task.preprocess(columns, self._encoder)
        self.outputs = self._run(self._encoder.arrays(features.encodings))
        found = task.decoded_postprocess(self.outputs, features.origins, self._encoder.tokenizer)
        return {tensor.name: found[tensor.name] for tensor in task.outputs()}


class PyTorch(_AsServed):
    """The original: ``transformers`` eager, tokenized as for every other backend."""

    def __init__(self, job: WorkerJob, bundle: Bundle) -> None:
        """Load the checkpoint of ``job``."""
        import torch
        import transformers

        self._torch = torch
        self._device = "cuda" if job.device == "gpu" else "cpu"
        # On a GPU the weights themselves become half; on a CPU autocast keeps what bfloat16 cannot hold in fp32.
        weights = torch.float16 if job.half and job.device == "gpu" else torch.float32
        self._autocast = job.half and job.device == "cpu"
        auto = getattr(transformers, bundle_task(bundle).auto_model)
        model = auto.from_pretrained(job.source, dtype=weights, use_safetensors=True, trust_remote_code=False)
        model.config.pad_token_id = bundle.padding["input_ids"]  # as in the export, where the config of the checkpoint has none
        self._model = self._prepared(model.eval().to(self._device))
        super().__init__(bundle, list(bundle.manifest.model_inputs))
        self._dtype = ""
        self.file = weights_file(job.source)
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
        return self._task.apply_output_head({name: head.float().cpu().numpy() for name, head in heads.items()}, feed)

    def precision(self) -> str:
        """Name the precision of the outputs; under autocast they may be fp32 again, if the last operator is a normalization."""
        return "bf16" if self._autocast else TORCH_PRECISIONS[self._dtype]


class Compiled(PyTorch):
    """The original through ``torch.compile``, compiled once for rows of any length."""

    def _prepared(self, model: Any) -> Any:
        return self._torch.compile(model, dynamic=True)

    def _run(self, feed: Arrays) -> Arrays:
        outputs = super()._run(feed)
        # torch continues without compilation, and does not report it
        if not self._torch._dynamo.utils.counters["stats"]["unique_graphs"]:
            raise RuntimeError("torch.compile compiled no graph of this model")
        return outputs


class TransformersPipeline:
    """``transformers.pipeline``, as most people run a checkpoint. Its answers have the library's own form."""

    def __init__(self, job: WorkerJob, bundle: Bundle) -> None:
        """Load the checkpoint of ``job``."""
        import torch
        import transformers

        self._task = bundle_task(bundle)
        self._pipeline = transformers.pipeline(bundle.task.name, model=str(job.source), device=0 if job.device == "gpu" else "cpu")
        tokenizer, taken = self._pipeline.tokenizer, inspect.signature(self._pipeline.model.forward).parameters
        # a tokenizer may make tensors that the model does not take, such as token_type_ids for DistilBERT
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
        tokenizer.model_max_length = self._max_length = bundle.max_length
        tokenizer.pad_token_id = self._pipeline.model.config.pad_token_id = bundle.padding["input_ids"]
        self.outputs: Arrays = {}
        self.file = weights_file(job.source)
        self.threads = torch.get_num_threads()

    def __call__(self, rows: RequestRows) -> list[Any]:
        """Answer a batch in the pipeline's own form."""
        return self._task.ask_pipeline(self._pipeline, rows, max_length=self._max_length)

    def evaluate(self, rows: RequestRows) -> list[Any]:
        """Answer a batch; the pipeline has no other options."""
        return self(rows)

    def precision(self) -> str:
        """Name the precision of the weights."""
        return TORCH_PRECISIONS[str(self._pipeline.model.dtype)]


class OnnxRuntime(_AsServed):
    """An ONNX variant with the tokenization and the answers that run inside Triton, without Triton."""

    def __init__(self, job: WorkerJob, bundle: Bundle) -> None:
        """Load the ONNX file of ``job``."""
        import onnxruntime

        if job.device == "gpu":
            onnxruntime.preload_dlls()  # CUDA's libraries lie in wheels, outside the loader's path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads or 0
        providers = self._providers(job, bundle)
        self._session = onnxruntime.InferenceSession(str(job.source), options, providers=providers)
        wanted = providers[0][0]
        if wanted not in self._session.get_providers():  # onnxruntime falls back to the CPU with no more than a log line
            raise RuntimeError(f"onnxruntime could not load {wanted}")
        super().__init__(bundle, [node.name for node in self._session.get_inputs()])
        self.file = job.source
        self.threads = job.threads or cores()

    def _providers(self, job: WorkerJob, bundle: Bundle) -> list[tuple[str, dict[str, str]]]:  # noqa: ARG002 - TensorRT uses it
        """Execution providers by preference, each with its options."""
        return [(PROVIDERS[job.device], {})]

    def _run(self, feed: Arrays) -> Arrays:
        names = self._task.model_outputs
        return dict(zip(names, self._session.run(list(names), feed), strict=True))

    def precision(self) -> str:
        """Return nothing: the bundle's manifest has the precision, by the file's checksum."""
        return ""


class TensorRT(OnnxRuntime):
    """The graph as exported, compiled by TensorRT: one engine for every batch and length of the benchmark.

    It does not run variants of the bundle, as TensorRT does not support ONNX Runtime's own operators.
    """

    def _providers(self, job: WorkerJob, bundle: Bundle) -> list[tuple[str, dict[str, str]]]:
        import tensorrt_libs  # noqa: F401 - loads the libraries, which lie outside the loader's path

        from export.graph import input_names

        names = input_names(job.source)
        encoder = bundle.encoder(names)
        asked = [*job.labelled, job.first]
        widest = max(len(bundle.encoder_task.preprocess([[text] for text in row], encoder).encodings) for row in asked)
        rows = job.most_rows * widest

        def shapes(rows: int, tokens: int) -> str:
            return ",".join(f"{name}:{rows}x{tokens}" for name in names)

        profile = {
            "trt_profile_min_shapes": shapes(1, 1),
            "trt_profile_opt_shapes": shapes(rows, max(1, bundle.max_length // 2)),
            "trt_profile_max_shapes": shapes(rows, bundle.max_length),
            "trt_fp16_enable": str(job.half),
        }
        self._half = job.half
        return [(TENSORRT, profile), (PROVIDERS["gpu"], {})]

    def precision(self) -> str:
        """Name the precision that TensorRT may use."""
        return "fp16" if self._half else "fp32"


BACKENDS: dict[str, Callable[[WorkerJob, Bundle], _AsServed | TransformersPipeline]] = {
    "pytorch": PyTorch,
    "compiled": Compiled,
    "pipeline": TransformersPipeline,
    "exported": OnnxRuntime,
    "onnx": OnnxRuntime,
    "tensorrt": TensorRT,
}


def weights_file(checkpoint: Path) -> Path:
    """Find a checkpoint's weights.

    Returns:
        The file with the weights, or with the index of their shards.

    Raises:
        ArtifactError: The folder holds no weights.
    """
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (checkpoint / name).is_file():
            return checkpoint / name
    raise ArtifactError(f"{checkpoint} holds no safetensors weights", hint="make a checkpoint with: tritonize finetune")


def has_tensorrt() -> bool:
    """Whether ONNX Runtime was built with TensorRT, and TensorRT itself is installed."""
    import onnxruntime

    return TENSORRT in onnxruntime.get_available_providers() and importlib.util.find_spec("tensorrt_libs") is not None
