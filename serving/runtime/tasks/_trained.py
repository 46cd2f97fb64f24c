"""Tasks whose checkpoints are trained, and not exported: their models answer one token at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from .base import Arrays, Options, Origins, Task, Tensor

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class TrainedTask(Task):
    """That half of a task which is not about serving; the other half says that there is none."""

    exported: ClassVar[bool] = False
    reads_digits: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool) -> Self:  # noqa: ARG003 - nothing is exported
        raise ValueError(f"{cls.name} is not served yet")

    @classmethod
    def from_labels(cls, labels: Sequence[Any], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003 - texts are the labels
        if pair:
            raise ValueError(f"{cls.name} learns from single texts, not from pairs")
        return cls()

    def reference(self, label: Any) -> Any:
        return label

    def predictions(self, answers: Arrays) -> list[Any]:  # noqa: ARG002
        self._refuse()

    def outputs(self) -> tuple[Tensor, ...]:
        self._refuse()

    @property
    def example(self) -> dict[str, str]:
        self._refuse()

    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:  # noqa: ARG002
        self._refuse()

    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:  # noqa: ARG002
        self._refuse()

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:  # noqa: ARG002
        self._refuse()

    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:  # noqa: ARG002
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotImplementedError(f"{self.name} is not served yet")
