"""What all manifests have in common."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, PlainSerializer

SCHEMA_VERSION: Literal[5] = 5
"""Raise it when a change makes the files that are on disk unreadable."""

Moment = Annotated[AwareDatetime, PlainSerializer(lambda moment: moment.isoformat(timespec="seconds"), return_type=str)]
"""A point in time in whole seconds, ISO 8601 with its offset from UTC."""


def is_none(value: object) -> bool:
    """Tell pydantic to leave a field out of the JSON (``exclude_if``)."""
    return value is None


class Record(BaseModel):
    """A part of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


class MetricRecord(Record):
    """A part of a manifest that also holds the figures of the task's metrics, whose names depend on the task.

    A figure is None if it is NaN or infinite, as a perplexity that overflows.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    @property
    def metrics(self) -> dict[str, float | None]:
        """The figures of the task's metrics by name."""
        return dict(self.__pydantic_extra__)


class StageInputs(Record):
    """What a stage read.

    Attributes:
        options: The options that decide the result.
        files: SHA-256 of each input file, by its path relative to the folder it belongs to, or to the project for code.
    """

    options: dict[str, JsonValue]
    files: dict[str, str]


class Manifest(Record):
    """The fields that every manifest has.

    Attributes:
        created: The time at which the stage finished.
        versions: Versions of Python and of the libraries that shape an artifact.
        inputs: What the stage read.
        files: SHA-256 of each file of the artifact, by its path relative to the artifact.
        manifest_sha256: SHA-256 of the manifest itself without this field, see :func:`serving.artifact.manifest_digest`.
    """

    artifact_kind: ClassVar[str]
    """The value of ``kind``."""
    remedy: ClassVar[str]
    """The command that writes the artifact again."""

    schema_version: Literal[5] = SCHEMA_VERSION
    kind: str
    created: Moment
    versions: dict[str, str]
    inputs: StageInputs
    files: dict[str, str]
    manifest_sha256: str = ""
