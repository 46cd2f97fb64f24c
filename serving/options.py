"""Options of the serving commands: one dataclass per stage. Imports little, so that ``--help`` is fast."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from serving.access_options import AccessOptions
from serving.file_layout import FileLayout, parse_rows_location
from serving.front_options import FrontOptions
from serving.health_options import HealthOptions
from serving.option_fields import Option
from serving.signing_options import VerificationOptions
from serving.vllm_options import VllmOptions
from serving.watch_options import WatchOptions

LONGEST_NAME = 200
"""Limit of a model's name in characters. Names of files have 255, and the names of steps and of temporary folders are longer."""


def parse_model_name(text: str) -> str:
    """Check the name of a model, which becomes a folder and part of URLs.

    Args:
        text: The name.

    Returns:
        The name.

    Raises:
        ValueError: It cannot be one.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text):
        raise ValueError(f"{text!r} is not a model name: use A-Z, a-z, 0-9, '_', '.' and '-', and neither '.' nor '-' first")
    if len(text) > LONGEST_NAME:
        raise ValueError(f"{text[:20] + '…'!r} is not a model name: it has {len(text)} characters, more than {LONGEST_NAME}")
    return text


WireProtocol = Literal["grpc", "http"]
"""How a client talks to the server."""
Precision = Literal["fp32", "fp16", "int8", "int8_rowwise"]
"""A variant of a bundle. ``int8`` has one scale per tensor of activations, ``int8_rowwise`` one per token."""
ComputeDevice = Literal["cpu", "gpu"]
"""A device that computes, once ``auto`` is resolved."""
ServingEngine = Literal["onnxruntime", "vllm"]
"""What runs a packaged model."""
Batching = Literal["ragged", "off"]
"""How requests are batched, once ``auto`` is resolved."""
ServedPrecision = Literal[Precision, "bf16"]
"""The precision that a packaged model computes in. vLLM converts the weights itself, and bundles have no variant in bf16."""
Layout = Literal["ensemble", "fused", "generation", "vllm"]
"""How a model becomes Triton models, once ``auto`` is resolved: one for each step; one for all steps; one that generates; one that
generates in vLLM."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CPU_PRECISIONS: tuple[Precision, ...] = ("int8", "int8_rowwise")
"""Variants for CPUs: ONNX Runtime has no GPU kernels for them."""
MAX_BATCH_SIZE = 64
"""Maximum number of rows per request, unless the user or tuning says otherwise."""

MODEL_NAME = Option("Name of the model: of its folders and of its ensemble in Triton.", parse=parse_model_name, shared=True)
"""The option ``--name``; each stage describes its own default. An empty name is chosen by :mod:`serving.naming`."""
Device = Annotated[
    Literal["auto", "cpu", "gpu"],
    Option("Device to compute on; auto: the GPU if there is one. ONNX graphs of models that generate run on the CPU.", shared=True),
]
Seed = Annotated[int, Option("Seed of all random choices.", minimum=0, maximum=2**32 - 1, shared=True)]
TextColumn = Annotated[
    str | None,
    Option("Column of the text, or of the first text of a pair.", flag="--text-column", default_text="the task's"),
]
TextPairColumn = Annotated[
    str | None, Option("Column of the second text of a pair.", flag="--text-pair-column", default_text="the task's")
]
ChoiceColumns = Annotated[
    tuple[str, ...],
    Option(
        "Column with a list of choices. Repeat the option for columns with one choice each.",
        flag="--choice-column",
        default_text="the task's",
    ),
]
Force = Annotated[
    bool,
    Option("Run the stage even if its result is up to date, and replace a result made from another model or other data."),
]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How a command prints its result."""

    json: Annotated[bool, Option("Print the result as JSON on standard output.", former_keys=("as_json",))] = False


@dataclass(frozen=True, kw_only=True)
class ArtifactsOptions:
    """Where the artifacts of fine-tuning and export are."""

    artifacts: Annotated[Path, Option("Folder for checkpoints and bundles.", path="folder", shared=True)] = Path("artifacts")


MAX_LENGTH = Option("Maximum number of tokens per row; longer rows are truncated.", minimum=4)
"""The option ``--max-length``; each stage describes its own default."""


@dataclass(frozen=True, kw_only=True)
class RepositoryOptions:
    """Where the Triton model repository is."""

    repository: Annotated[Path, Option("Triton model repository.", path="folder", shared=True)] = Path("model_repository")


@dataclass(frozen=True, kw_only=True)
class PackageOptions(ArtifactsOptions, RepositoryOptions, VerificationOptions):
    """Options of ``tritonize package``; ``auto`` and None leave a choice to :func:`serving.plan.make_plan`.

    Attributes:
        tuned: Whether to use the configuration that ``tritonize tune`` found.
    """

    name: Annotated[str, replace(MODEL_NAME, default_text="the bundle's; otherwise that of the only bundle")] = ""
    keep: Annotated[
        int,
        Option(
            "Number of generations of the model that stay in the repository. Those that a running server serves also stay.",
            minimum=1,
        ),
    ] = 2
    current: Annotated[
        bool,
        Option(
            "Make the new generation the current one, which a server that is started later serves. The first generation of a model "
            "always is."
        ),
    ] = True
    bundle: Annotated[
        Path | None, Option("Folder that export wrote.", path="folder", default_text="ARTIFACTS/NAME/bundle", shared=True)
    ] = None
    precision: Annotated[
        Literal["auto", ServedPrecision],
        Option(
            "Variant to serve; auto: fp16 on a GPU, on a CPU (and of models that generate) the fastest variant that passed its "
            "gates. With vLLM, auto is the precision of the checkpoint, or fp16 if that is fp32; bf16 is for vLLM only.",
            shared=True,
        ),
    ] = "auto"
    engine: Annotated[
        ServingEngine,
        Option(
            "Engine that runs the model; onnxruntime: the exported variants; vllm: the checkpoint itself, for text-generation on a "
            "GPU, in the official Triton image with vLLM."
        ),
    ] = "onnxruntime"
    vllm: VllmOptions = field(default_factory=VllmOptions)
    device: Device = "auto"
    batching: Annotated[
        Literal["auto", "ragged", "off"],
        Option(
            "Batching of requests; ragged: requests of different lengths share an execution; auto: ragged on a GPU, on a CPU "
            "whichever measured faster, and off for int8 (not for int8_rowwise)."
        ),
    ] = "auto"
    layout: Annotated[
        Literal["auto", "ensemble", "fused"],
        Option(
            "Processes of the steps; ensemble: each step has its own; fused: one has all steps, which is faster on a CPU without "
            "batching; auto: as tuned, otherwise ensemble."
        ),
    ] = "auto"
    instances: Annotated[
        int | None,
        Option(
            "Number of instances of the model.",
            minimum=1,
            maximum=256,
            default_text="as tuned, otherwise 1 with batching and one per core without",
        ),
    ] = None
    preprocess_instances: Annotated[
        int | None,
        Option(
            "Number of processes that tokenize.",
            minimum=1,
            maximum=256,
            default_text="as tuned, otherwise 1 on a CPU and a third of the cores, at most 6, on a GPU",
        ),
    ] = None
    postprocess_instances: Annotated[
        int | None,
        Option(
            "Number of processes that make answers.",
            minimum=1,
            maximum=256,
            default_text="as tuned, otherwise half as many as tokenize",
        ),
    ] = None
    threads: Annotated[
        int | None,
        Option(
            "CPU threads per instance.",
            minimum=1,
            maximum=256,
            default_text="as tuned, otherwise the cores divided by the instances",
        ),
    ] = None
    max_batch_size: Annotated[
        int | None,
        Option(
            "Maximum number of rows per request.",
            minimum=1,
            maximum=4096,
            default_text=f"as tuned, otherwise {MAX_BATCH_SIZE}",
        ),
    ] = None
    queue_delay_us: Annotated[
        int | None,
        Option(
            "Maximum time in microseconds that a request waits for others, with ragged batching.",
            minimum=0,
            maximum=10_000_000,
            default_text="as tuned, otherwise 0",
        ),
    ] = None
    max_length: Annotated[int | None, replace(MAX_LENGTH, default_text="as exported")] = None
    capacity: Annotated[
        int | None,
        Option(
            "Tokens that a model which generates has room for in each sequence: of a prompt and its answer together.",
            minimum=16,
            default_text="as exported, at most what a quarter of the memory holds",
        ),
    ] = None
    force: Force = False
    tuned: bool = True

    @property
    def bundle_folder(self) -> Path:
        """The folder of the bundle."""
        return self.bundle or self.artifacts / self.name / "bundle"


@dataclass(frozen=True, kw_only=True)
class ServerPort:
    """The port that identifies a server on a machine."""

    http_port: Annotated[int, Option("HTTP port of the server.", minimum=1, maximum=65535)] = 8000


@dataclass(frozen=True, kw_only=True)
class StopOptions(ServerPort):
    """Options of ``tritonize stop``."""

    only_repository: Annotated[
        Path | None,
        Option(
            "Stop the server only if it was started with this repository; otherwise nothing happens.",
            path="folder",
            default_text="whatever its repository is",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ServerAddress(ServerPort):
    """Where a server listens."""

    host: Annotated[
        str, Option("Address that the server listens on; any other than a loopback address opens it to other machines.")
    ] = "127.0.0.1"
    grpc_port: Annotated[int, Option("gRPC port of the server.", minimum=1, maximum=65535)] = 8001
    metrics_port: Annotated[int, Option("Port of the server's Prometheus metrics.", minimum=1, maximum=65535)] = 8002

    @property
    def base_url(self) -> str:
        """The HTTP address for a client on this machine."""
        return f"http://{self._local_host}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        """The address of Triton's metrics for a client on this machine."""
        return f"http://{self._local_host}:{self.metrics_port}/metrics"

    @property
    def grpc_url(self) -> str:
        """The gRPC address for a client on this machine."""
        return f"{self._local_host}:{self.grpc_port}"

    @property
    def _local_host(self) -> str:
        if self.host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            return "127.0.0.1"
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True, kw_only=True)
class ServeOptions(RepositoryOptions, ServerAddress, HealthOptions, FrontOptions, WatchOptions, VerificationOptions):
    """Options of ``tritonize serve``."""

    ready_timeout: Annotated[
        float, Option("Seconds to wait for the first answers of all models.", minimum=1, may_be_infinite=True)
    ] = 300.0
    strict: Annotated[bool, Option("Fail if one ensemble is damaged. Otherwise it is left out, and the others are served.")] = False

    @property
    def own_health_port(self) -> int:
        """The port of the health checks: the given one, or the next one to that of the metrics."""
        return self.metrics_port + 1 if self.health_port is None else self.health_port

    @property
    def health_url(self) -> str:
        """The base URL of the health checks for a client on this machine."""
        return f"http://{self._local_host}:{self.own_health_port}"


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """How ``tritonize serve`` starts the server."""

    detach: Annotated[
        bool, Option("Return when the server is ready and leave it running in the background; tritonize stop ends it.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Files and columns of ``tritonize predict``."""

    input: Annotated[
        Path | None,
        Option(
            "Rows to predict: a csv, tsv, txt, json, jsonl, parquet or CoNLL file, a pattern or folder of such files, or a folder "
            "of texts.",
            metavar="PATH",
            parse=parse_rows_location,
            former_keys=("input_file",),
        ),
    ] = None
    output: Annotated[
        Path | None,
        Option(
            "File for the rows and their answers as jsonl. If the file exists, the run resumes.",
            path="file",
            metavar="FILE",
            former_keys=("output_file",),
        ),
    ] = None
    text_column: TextColumn = None
    text_pair_column: TextPairColumn = None
    choice_column: ChoiceColumns = ()
    layout: FileLayout = field(default_factory=FileLayout)
    option: Annotated[
        Mapping[str, Any],
        Option(
            "Request parameter of the task, such as top_k=3. Repeatable.",
            metavar="KEY=VALUE",
            default_text="",
        ),
    ] = field(default_factory=dict)
    chat: Annotated[
        bool,
        Option("Send each text as the message of a user to a chat model. A text that is a JSON list of messages is a whole chat."),
    ] = False
    stream: Annotated[
        bool, Option("Print the text while it is generated, as always where one text is given and the output is a terminal.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class RequestOptions(AccessOptions):
    """How a client sends its requests."""

    url: Annotated[
        str | None,
        Option(
            "Address of the server. With gRPC and dns:///HOST:PORT, requests go to all addresses of the host in turn.",
            metavar="HOST:PORT",
            default_text="127.0.0.1:8001 for gRPC, 127.0.0.1:8000 for HTTP",
        ),
    ] = None
    protocol: Annotated[WireProtocol, Option("Protocol of the requests.")] = "grpc"
    concurrency: Annotated[int, Option("Number of requests in flight.", minimum=1, maximum=1024)] = 16
    batch_size: Annotated[int, Option("Rows per request.", minimum=1, maximum=4096)] = 1
    timeout: Annotated[float, Option("Time limit of one request in seconds.", minimum=0.001, may_be_infinite=True)] = 60.0
