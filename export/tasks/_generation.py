"""Defines what export needs of a task whose model generates its answers token by token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Generic, Self

from typing_extensions import TypeVar

from export.generation_defaults import GenerationDefaults, generation_defaults
from export.generation_settings import LIMITS, generation_setting, is_generation_setting, unknown_setting
from export.tasks.exported import ExportedTask
from serving.options import Precision
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

        Its defaults may not be supported: :meth:`with_defaults` checks them, since the user may have chosen others.

        Raises:
            ValueError: The checkpoint has no token with which the decoder begins.
        """

    def with_defaults(self, chosen: Mapping[str, JsonValue]) -> Self:
        """Return the task whose served half has chosen settings in place of the checkpoint's defaults.

        Args:
            chosen: Settings that the user chose for export, by name. Those that are no options of a request change nothing.

        Raises:
            ValueError: A default of the checkpoint or of the user is not supported, or they do not fit each other.
        """
        generated = {name: value for name, value in chosen.items() if is_generation_setting(name)}
        replaced = {other for name, other in (LIMITS | {two: one for one, two in LIMITS.items()}).items() if name in generated}
        own = {name: value for name, value in chosen.items() if name in self.served.own_options}

        def with_generated(defaults: Mapping[str, object]) -> dict[str, object]:
            return {name: value for name, value in defaults.items() if name not in replaced} | generated

        generation = with_generated(self.served.generation)
        model_generation = with_generated(self.served.model_generation or {})
        served = replace(self.served, generation=generation, model_generation=model_generation, **own)  # type: ignore[arg-type]
        served.check_options()
        return replace(self, served=served)

    # -- settings -------------------------------------------------------------------------------------------------------------

    @classmethod
    def check_settings(cls, given: Mapping[str, object]) -> dict[str, JsonValue]:
        """Check the settings that a user chose. Options of generation are settings too.

        Raises:
            ValueError: As in the base class, or as for the options of a request.
        """
        known = cls.known_settings()
        for name in given:
            if name not in known and (meant := unknown_setting(name)) and not is_generation_setting(name):
                raise ValueError(f"{cls.name} has no setting {name}; {meant}")
        generated = {name: value for name, value in given.items() if name not in known and is_generation_setting(name)}
        own = super().check_settings({name: value for name, value in given.items() if name not in generated})
        return own | {name: generation_setting(name, value) for name, value in generated.items()}

    @classmethod
    def serving_settings(cls, given: Collection[str]) -> list[str]:
        """Return those of some settings that say only how the served model generates."""
        return [name for name in given if name not in cls.known_settings() and is_generation_setting(name)]

    def with_settings(self, settings: Mapping[str, JsonValue]) -> Self:
        """Return the task with other values for some settings, without those of generation: see :meth:`with_defaults`.

        Raises:
            TypeError: As in the base class.
            ValueError: As in the base class.
        """
        left = self.serving_settings(settings)
        return super().with_settings({name: value for name, value in settings.items() if name not in left})

    def defaults(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, object]
    ) -> GenerationDefaults:
        """Return what the pipeline of this task knows of a checkpoint without options."""
        return generation_defaults(self.name, model.generation_config, config, pad_token_id=tokenizer.pad_token_id)
