"""The attributes of a pipeline that are not calls: its model with the config, its tokenizer, its device.

They hold what packaging wrote about the checkpoint into the ensemble's configuration (see :mod:`serving.description`). The model
and the tokenizer themselves are on the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

DEFAULT_LABELS = 2
"""Number of labels of a ``PretrainedConfig`` that says nothing of them."""


class ServedConfig:
    """The ``config.json`` of the served checkpoint, with the attributes of a ``PretrainedConfig``."""

    problem_type: str | None = None

    def __init__(self, values: Mapping[str, Any], *, name: str) -> None:
        """Create the config.

        Args:
            values: The entries of ``config.json``.
            name: The name of the ensemble, which stands for the checkpoint's path.
        """
        labels = values.get("id2label")
        if labels is None:
            labels = {place: f"LABEL_{place}" for place in range(values.get("num_labels", DEFAULT_LABELS))}
        self.id2label = {int(place): label for place, label in labels.items()}
        self.label2id = {label: place for place, label in self.id2label.items()}
        self.name_or_path = self._name_or_path = name
        vars(self).update({key: value for key, value in values.items() if key not in ("id2label", "num_labels")})

    @property
    def num_labels(self) -> int:
        """The number of labels."""
        return len(self.id2label)

    def to_dict(self) -> dict[str, Any]:
        """Return all entries."""
        return dict(vars(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"


@dataclass(frozen=True)
class ServedDevice:
    """The kind of device that the model runs on, as ``str(torch.device(…))`` names it. It equals such a ``torch.device``.

    Attributes:
        type: ``cpu`` or ``cuda``.
        index: None: Triton chooses.
    """

    type: str
    index: None = None

    def __str__(self) -> str:
        return self.type

    def __eq__(self, other: object) -> bool:
        return str(other) == self.type

    def __hash__(self) -> int:
        return hash(self.type)


class OnServer:
    """Base class of what stands for an object on the server, and has few of its attributes."""

    def __getattr__(self, name: str) -> Any:
        """Say why there is no such attribute."""
        has = ", ".join(sorted(vars(self)))
        raise AttributeError(f"{type(self).__name__} has no {name}: the original is on the server, here are {has}")


class ServedModel(OnServer):
    """Stands for the model of a pipeline."""

    def __init__(self, config: ServedConfig, device: ServedDevice) -> None:
        """Create it from the attributes that it has."""
        self.config = config
        self.device = device
        self.name_or_path = config.name_or_path


class ServedTokenizer(OnServer):
    """Stands for the tokenizer of a pipeline: ``model_max_length``, ``vocab_size``, and the special tokens with their ids.

    ``model_max_length`` is the number of tokens that the server keeps of a row.
    """

    def __init__(self, values: Mapping[str, Any], *, name: str) -> None:
        """Create it from the attributes that it has."""
        vars(self).update(values, name_or_path=name)


@dataclass(frozen=True, kw_only=True)
class PipelineAttributes:
    """The attributes of the pipeline of one ensemble."""

    model: ServedModel
    tokenizer: ServedTokenizer
    device: ServedDevice

    @classmethod
    def of(cls, name: str, description: Mapping[str, Any]) -> Self:
        """Read what :func:`serving.description.describe` gave for the ensemble ``name``.

        Raises:
            KeyError: An entry is missing.
        """
        device = ServedDevice(description["device"])
        return cls(
            model=ServedModel(ServedConfig(description["config"], name=name), device),
            tokenizer=ServedTokenizer(description["tokenizer"], name=name),
            device=device,
        )
