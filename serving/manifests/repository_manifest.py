"""What packaging records about a model repository."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt

from serving.configuration import Configuration
from serving.manifests.bundle_manifest import EitherFigures
from serving.manifests.manifest import Manifest, Record, StageInputs, is_none
from serving.options import Batching, ComputeDevice, Layout, ServedPrecision


class ProbeInput(Record):
    """One input tensor of a request in Triton's JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: tuple[str, ...]


def _is_empty(value: object) -> bool:
    return not value


def _is_infer(value: object) -> bool:
    return value == "infer"


class ProbeBody(Record):
    """A request that shows whether an ensemble answers: the example of the task.

    Attributes:
        inputs: The input tensors, of one row each.
        parameters: The request parameters.
        endpoint: Where Triton takes it: ``generate`` if the model is decoupled.
    """

    inputs: tuple[ProbeInput, ...]
    parameters: dict[str, JsonValue] = Field(default={}, exclude_if=_is_empty)
    endpoint: Literal["infer", "generate"] = Field(default="infer", exclude_if=_is_infer)

    @property
    def body(self) -> dict[str, JsonValue]:
        """The request in the JSON of its endpoint."""
        if self.endpoint == "infer":
            return self.model_dump(mode="json", exclude={"endpoint"})
        return {**{one.name: one.data[0] for one in self.inputs}, **self.parameters}


class ExpectedTensor(Record):
    """One output tensor of an answer in Triton's JSON.

    Attributes:
        name: Name of the tensor.
        datatype: Triton's name of the data type.
        shape: The shape, with the rows first.
        data: The elements, flat.
        undecided: Paths in the elements of what a difference within the tolerance may change, such as the order of two labels with
            almost equal scores. They are not compared.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: tuple[str | bool | int | float, ...]
    undecided: tuple[str, ...] = ()


class ExpectedAnswer(Record):
    """A request, and the answer that packaging computed for it."""

    request: ProbeBody
    outputs: tuple[ExpectedTensor, ...]


class BundleProvenance(Record):
    """The bundle that a repository was packaged from.

    Attributes:
        manifest: What the export read.
        figures: Figures of the variant that is served; None if the checkpoint itself is.
        name: Name of the bundle; None in repositories of earlier versions.
    """

    manifest: StageInputs
    figures: EitherFigures | None
    name: str | None = Field(default=None, exclude_if=is_none)


class RepositoryManifest(Manifest):
    """The manifest that ``tritonize package`` writes.

    Attributes:
        name: Name of the ensemble.
        generation: Name of the generation.
        task: The task.
        settings: Settings of the task.
        max_length: Maximum tokens of a row.
        probe: A request that the server checks itself with.
        answers: The answers that the server must give, the first of them to ``probe``; empty if they could not be computed.
        reasons: Why each automatic choice was made, by option.
        bundle: Where the graph comes from.
        engine_arguments: What vLLM is told, where it runs the model.

    The other fields are those of :class:`serving.configuration.Configuration`.
    """

    artifact_kind: ClassVar[str] = "repository"
    remedy: ClassVar[str] = "tritonize package"

    kind: Literal["repository"] = "repository"
    name: str
    generation: str
    task: str
    settings: dict[str, JsonValue]
    max_length: PositiveInt
    probe: ProbeBody
    answers: tuple[ExpectedAnswer, ...]
    precision: ServedPrecision
    device: ComputeDevice
    batching: Batching
    instances: PositiveInt
    threads: PositiveInt
    max_batch_size: PositiveInt
    queue_delay_us: NonNegativeInt
    layout: Layout = "ensemble"
    preprocess_instances: PositiveInt = 1
    postprocess_instances: PositiveInt = 1
    capacity: PositiveInt | None = Field(default=None, exclude_if=is_none)
    reasons: dict[str, str]
    bundle: BundleProvenance
    engine_arguments: dict[str, JsonValue] = Field(default={}, exclude_if=_is_empty)

    @property
    def configuration(self) -> Configuration:
        """How the model is served."""
        return Configuration(
            precision=self.precision,
            device=self.device,
            batching=self.batching,
            instances=self.instances,
            threads=self.threads,
            max_batch_size=self.max_batch_size,
            queue_delay_us=self.queue_delay_us,
            layout=self.layout,
            preprocess_instances=self.preprocess_instances,
            postprocess_instances=self.postprocess_instances,
            capacity=self.capacity,
        )
