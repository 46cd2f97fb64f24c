"""Progress of a training: a bar on a terminal, lines in a log. Imports transformers."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from serving.reporting import console, is_main_process, logger


class TrainingProgress(TrainerCallback):  # type: ignore[misc]  # the library is untyped
    """Reports every evaluation, and the steps between them: as a bar on a terminal, elsewhere as a line per tenth of the steps.

    It replaces the callbacks of ``transformers``, which print on standard output. The bar is shown inside a ``with`` block.
    """

    def __init__(self, main_metric: str) -> None:
        """Prepare the bar.

        Args:
            main_metric: Name of the metric to report.
        """
        self._main_metric = main_metric
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        shown = console().is_terminal and is_main_process()
        self._bar = Progress(*columns, console=console(), transient=True, disable=not shown)
        self._steps = self._bar.add_task("training", total=None)
        self._batches = self._bar.add_task("evaluation", total=None, visible=False)

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Remove the bar."""
        self._bar.stop()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Report how many steps are done."""
        step, total = state.global_step, state.max_steps
        self._bar.update(self._steps, completed=step, total=total)
        if self._bar.disable and (step == 1 or step * 10 // total > (step - 1) * 10 // total):
            logger.info(f"step {step} of {total}, epoch {state.epoch:.2f}")

    def on_prediction_step(self, _args: Any, _state: Any, _control: Any, eval_dataloader: Any, **_: Any) -> None:
        """Report how many batches are evaluated."""
        self._bar.update(self._batches, advance=1, total=len(eval_dataloader), visible=True)

    def on_predict(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Hide the bar of the evaluation."""
        self._bar.reset(self._batches, visible=False)

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Report the metric and the loss."""
        self._bar.reset(self._batches, visible=False)
        metric = metrics.get(f"eval_{self._main_metric}")
        if metric is not None:
            loss = metrics["eval_loss"]
            logger.info(f"epoch {state.epoch:.0f}: validation {self._main_metric} {metric:.4f}, loss {loss:.4f}")
