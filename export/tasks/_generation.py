"""Defines what export needs of a task whose model generates its answers token by token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Generic, Self

from typing_extensions import TypeVar

from export.generation_defaults import GenerationDefaults, generation_defaults
from export.tasks.exported import ExportedTask
from serving.options import Precision
from serving.runtime.generation.generation_options import OPTIONS
from serving.runtime.tasks._generation import GenerationTask
from serving.runtime.types import JsonValue

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Generation_co = TypeVar("Generation_co", bound=GenerationTask, covariant=True, default=GenerationTask)


@dataclass(frozen=True, kw_only=True)
class ExportedGenerationTask(ExportedTask[Generation_co], Generic[Generation_co]):
    """A task whose checkpoints generate. The served half is complete only after :meth:`bound_to`."""

    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")
    """The scales of int8 are those of single tokens already."""
    default_precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    """fp16 saves memory, but is often slower on the CPU, where the graphs run: it is exported if it is asked for."""

    @property
    def adds_special_tokens(self) -> bool:
        """Return whether the tokenizer adds special tokens to the rows that are evaluated. Default: it does."""
        return True

    @abstractmethod
    def bound_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, object]) -> Self:
        """Return the task with the served half of a checkpoint: how ``transformers.pipeline`` generates from it, and its tokens.

        Args:
            model: The checkpoint's model.
            tokenizer: Its tokenizer.
            config: Its ``config.json``.

        Raises:
            ValueError: The checkpoint asks for something that is not supported. The message says what.
        """

    def with_defaults(self, chosen: Mapping[str, JsonValue]) -> Self:
        """Return the task whose served half has chosen settings in place of the checkpoint's defaults.

        Args:
            chosen: Settings that the user chose for export, by name. Those that are no options of a request change nothing.

        Raises:
            ValueError: They do not fit the checkpoint's other defaults, such as a minimum length.
        """
        generated = {name: value for name, value in chosen.items() if name in OPTIONS}
        replaced = {"max_length"} if "max_new_tokens" in generated else set()
        kept = {name: value for name, value in self.served.generation.items() if name not in replaced}
        own = {name: value for name, value in chosen.items() if name in self.served.own_options}
        served = replace(self.served, generation=kept | generated, **own)  # type: ignore[arg-type]
        served.check_options()
        return replace(self, served=served)

    def defaults(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, object]
    ) -> GenerationDefaults:
        """Return what the pipeline of this task knows of a checkpoint without options."""
        return generation_defaults(self.name, model.generation_config, config, pad_token_id=tokenizer.pad_token_id)
