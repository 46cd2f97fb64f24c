"""The ways of answering in process: PyTorch, ``transformers``' pipeline, ONNX Runtime. Each imports its library when it loads."""

from __future__ import annotations

import importlib.util
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.jobs import RequestRows, WorkerJob
from serving.errors import ArtifactError
from serving.machine import cores

if TYPE_CHECKING:
    from serving.bundle import Bundle
    from serving.runtime.tasks.base import Arrays, Options

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}
TENSORRT = "TensorrtExecutionProvider"
TORCH_PRECISIONS = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}


class Runner(Protocol):
    """A loaded model: rows of requests in, answers out, tokenization included."""

    file: Path
    """What was loaded: its checksum tells which variant ran."""
    threads: int
    """Threads of one operator, as the library reports them."""
    said: Arrays
    """What the model itself said last, by output; empty where a library keeps that to itself."""

    def __call__(self, rows: RequestRows) -> Any:
        """Answer a batch: the tensors of the task's outputs, or a list where the library has a form of its own."""

    def judged(self, rows: RequestRows) -> Any:
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

    def __call__(self, rows: RequestRows) -> Arrays:
        return self._answered(rows, self._plainly)

    def judged(self, rows: RequestRows) -> Arrays:
        return self._answered(rows, self._to_judge)

    def _answered(self, rows: RequestRows, options: Options) -> Arrays:
        columns = [list(column) for column in zip(*rows, strict=True)]
        features = self._task.features(columns, self._encoder, options)
        outputs = self._run(self._encoder.arrays(features.encodings))
        self.said = outputs
        found = self._task.worded_answers(outputs, features.origins, options, self._tokenizer)
        return {tensor.name: found[tensor.name] for tensor in self._task.outputs()}


class PyTorch(_AsServed):
    """The original: ``transformers`` eager, tokenized as for every other way of answering."""

    def __init__(self, job: WorkerJob, bundle: Bundle) -> None:
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
        # under autocast an output may be fp32 again, where the last operator is a normalisation
        return "bf16" if self._autocast else TORCH_PRECISIONS[self._dtype]


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

    def __init__(self, job: WorkerJob, bundle: Bundle) -> None:
        import torch
        import transformers

        self._task = bundle.task
        self._pipeline = transformers.pipeline(bundle.task.name, model=job.source, device=0 if job.device == "gpu" else "cpu")
        _leave_out_unknown(self._pipeline.tokenizer, self._pipeline.model)
        self._max_length = bundle.max_length
        self.said: Arrays = {}
        self.file = weights_file(Path(job.source))
        self.threads = torch.get_num_threads()

    def __call__(self, rows: RequestRows) -> list[Any]:
        return self._task.ask_pipeline(self._pipeline, rows, max_length=self._max_length)

    def judged(self, rows: RequestRows) -> list[Any]:
        return self(rows)

    def precision(self) -> str:
        return TORCH_PRECISIONS[str(self._pipeline.model.dtype)]


class OnnxRuntime(_AsServed):
    """An ONNX variant with the tokenizer and the answers that run inside Triton, without Triton."""

    def __init__(self, job: WorkerJob, bundle: Bundle) -> None:
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

    def _providers(self, job: WorkerJob, bundle: Bundle) -> list[tuple[str, dict[str, str]]]:  # noqa: ARG002 - others look at it
        """Where to run, by preference, each with its options."""
        return [(PROVIDERS[job.device], {})]

    def _run(self, feed: Arrays) -> Arrays:
        names = self._task.outputs_read
        return dict(zip(names, self._session.run(list(names), feed), strict=True))

    def precision(self) -> str:
        return ""  # the bundle's manifest knows, by the file's checksum


class TensorRT(OnnxRuntime):
    """The graph as exported, compiled by TensorRT: one engine for every batch and length that will be asked.

    Not a variant of the bundle: operators of ONNX Runtime's own are none that TensorRT knows.
    """

    def _providers(self, job: WorkerJob, bundle: Bundle) -> list[tuple[str, dict[str, str]]]:
        import tensorrt_libs  # noqa: F401 - loads the libraries, which lie where the loader does not look

        from export.graph import input_names

        names = input_names(Path(job.source))
        encoder, options = bundle.encoder(names), bundle.task.request_options({})
        asked = [*job.labelled, job.first]
        widest = max(len(bundle.task.features([[text] for text in row], encoder, options).encodings) for row in asked)
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
        return "fp16" if self._half else "fp32"


BACKENDS: dict[str, Callable[[WorkerJob, Bundle], Runner]] = {
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


def has_tensorrt() -> bool:
    """Whether ONNX Runtime was built with TensorRT, and TensorRT itself is there."""
    import onnxruntime

    return TENSORRT in onnxruntime.get_available_providers() and importlib.util.find_spec("tensorrt_libs") is not None
