"""How far a training is, for logs. Imports transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from export.training.distributed import say


class PlainProgress(TrainerCallback):  # type: ignore[misc]  # the library is untyped
    """One line for the first step, one a tenth of the way, and one for every evaluation, for logs."""

    def __init__(self, main_metric: str) -> None:
        self._main_metric = main_metric

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Say how far training is."""
        step = state.global_step
        if step == 1 or step * 10 // state.max_steps > (step - 1) * 10 // state.max_steps:
            say(f"step {state.global_step} of {state.max_steps}, epoch {state.epoch:.2f}")

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Say how good the model is."""
        metric = metrics.get(f"eval_{self._main_metric}")
        if metric is not None:
            loss = metrics["eval_loss"]
            say(f"epoch {state.epoch:.0f}: validation {self._main_metric} {metric:.4f}, loss {loss:.4f}")
