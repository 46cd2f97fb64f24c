"""``transformers.Trainer`` with the losses, outputs and optimizer that tasks need. Imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sized
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from transformers import Seq2SeqTrainer

from export.tasks._encoder import ExportedEncoderTask
from export.tasks.trained import OwnLossTask, TrainedTask
from export.training.batches import TEACHER_LOGITS
from export.training.distillation import Teacher
from export.training.losses import Loss
from serving.errors import ArtifactError, DivergedError, first_line
from serving.runtime.tokenization import FIELDS
from serving.runtime.types import Arrays, Origins

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast
    from transformers.trainer_utils import EvalLoopOutput

LossAndOutputs: TypeAlias = torch.Tensor | tuple[torch.Tensor, Mapping[str, torch.Tensor]]
"""The loss of a batch, alone or with the outputs of the model by name."""

SHOWN_ROWS = 3
"""Number of rows of a batch that an error message shows."""
LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")
"""Finds the number of the layer in the name of a parameter."""


class TaskTrainer(Seq2SeqTrainer):  # type: ignore[misc]  # the library is untyped
    """Trainer that keeps the order of evaluation rows and uses the task's loss and output head.

    The output head is applied to each batch before its outputs are collected for the metric: the logits of every token of an
    evaluation set may not fit into memory.
    """

    def __init__(
        self,
        task: TrainedTask,
        tokenizer: PreTrainedTokenizerFast,
        *,
        loss: Loss | None = None,
        teacher: Teacher | None = None,
        layer_decay: float = 1,
        **arguments: Any,
    ) -> None:
        """Make a trainer.

        Args:
            task: The task.
            tokenizer: The tokenizer, to show rows in error messages.
            loss: Loss that replaces the model's own; None: the model's or the task's own.
            teacher: Teacher for distillation.
            layer_decay: Ratio of a layer's learning rate to that of the layer above it.
            **arguments: Arguments of ``transformers.Seq2SeqTrainer``.
        """
        super().__init__(**arguments)
        self._task = task
        self._tokenizer = tokenizer  # not as processing_class: the library would write its special tokens into the model's config
        self._loss = loss
        self._teacher = teacher
        self._layer_decay = layer_decay
        if loss or teacher:  # these losses are means over the batch, not sums divided by the number of targets
            self.model_accepts_loss_kwargs = False

    def _get_eval_sampler(self, eval_dataset: Sized) -> torch.utils.data.SequentialSampler:
        """Keep the order of the rows: the library would group these by length too, away from their references."""
        return torch.utils.data.SequentialSampler(eval_dataset)

    def compute_loss(
        self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], return_outputs: bool = False, **arguments: Any
    ) -> LossAndOutputs:
        """Compute the loss of a batch.

        Args:
            model: The model.
            inputs: Inputs and targets of the batch.
            return_outputs: Whether to return the outputs too. With the task's own loss these are ``model_outputs``, each
                ``[labelled rows, requests of each, …]``.
            **arguments: Further arguments of the library's method.

        Returns:
            The loss, or the loss and the outputs.

        Raises:
            ArtifactError: The model refuses the batch, such as BART rows with different numbers of end tokens.
        """
        if isinstance(self._task, OwnLossTask):
            return self._own_loss(self._task, model, inputs, return_outputs)
        try:
            if self._loss or (self._teacher and model.training):
                loss, outputs = self._replaced_loss(model, inputs)
            else:
                loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **arguments)
        except ValueError as error:
            raise ArtifactError(
                f"the model cannot compute a batch: {first_line(error)}; the batch: {_describe_batch(self._tokenizer, inputs)}",
                hint="look at those rows",
            ) from error
        # models also return hidden states, if their config.json says so, and encoder-decoders the encoder's
        return (loss, {"loss": loss, **{name: outputs[name] for name in self._task.heads}}) if return_outputs else loss

    def _own_loss(
        self, task: OwnLossTask, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], return_outputs: bool
    ) -> LossAndOutputs:
        targets = {name: inputs[name] for name in self.label_names}
        feed = {name: value for name, value in inputs.items() if name not in targets}
        heads = model(**feed)
        outputs = task.head_outputs({name: heads[name] for name in task.heads}, feed)
        loss = task.loss(outputs, targets)
        if not return_outputs:
            return loss
        rows = len(next(iter(targets.values())))
        by_row = {name: values.unflatten(0, (-1, rows)).transpose(0, 1) for name, values in outputs.items()}
        return loss, {"loss": loss, **by_row}

    def _replaced_loss(
        self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        own = {name: values for name, values in inputs.items() if name != TEACHER_LOGITS}
        if self._loss is None:
            hard, outputs = super().compute_loss(model, own, return_outputs=True)
        else:
            labels = own.pop("labels")
            outputs = model(**own)
            hard = self._loss(outputs["logits"], labels)
        if self._teacher is None or not model.training:
            return hard, outputs
        return self._teacher.loss(hard, outputs, inputs), outputs

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in (TEACHER_LOGITS, "length") if name not in self._signature_columns]

    def training_step(
        self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], *arguments: Any, **named: Any
    ) -> torch.Tensor:
        """Run the forward and backward pass of a batch.

        Args:
            model: The model.
            inputs: Inputs and targets of the batch.
            *arguments: Further arguments of the library's method.
            **named: Further arguments of the library's method.

        Returns:
            The loss.

        Raises:
            DivergedError: The loss is NaN or infinite; the message shows the batch.
        """
        loss = super().training_step(model, inputs, *arguments, **named)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"training diverged: the loss of step {self.state.global_step + 1} is {loss.item()}; "
                f"its batch: {_describe_batch(self._tokenizer, inputs)}",
                hint="give a smaller --learning-rate; if it is the first step, look at those rows",
            )
        return loss

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the learning rate schedule; warm-up of less than a step is dropped, because the first warm-up step has rate 0."""
        if num_training_steps * self.args.warmup_ratio < 1:
            self.args.warmup_ratio = 0.0
        return super().create_scheduler(num_training_steps, optimizer)

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer, AdamW, with a learning rate per layer if there is a layer decay."""
        optimizer = super().create_optimizer()
        if self._layer_decay != 1:
            _decay_by_layer(optimizer, self.model, self._layer_decay)
        return optimizer

    def evaluation_loop(self, *arguments: Any, **named: Any) -> EvalLoopOutput:
        """Evaluate all rows, each once.

        Distributed samplers repeat rows to fill batches, and the library's trainer for encoder-decoders would count them twice.
        """
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*arguments, **named)

    def prediction_step(self, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], *arguments: Any, **named: Any) -> Any:
        """Return the loss, the outputs after the output head, and the targets of a batch."""
        loss, outputs, targets = super().prediction_step(model, inputs, *arguments, **named)
        task = self._task
        if not (isinstance(task, ExportedEncoderTask) and task.has_output_head) or isinstance(task, OwnLossTask) or outputs is None:
            return loss, outputs, targets
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        heads = {name: head.float().cpu().numpy() for name, head in zip(task.heads, found, strict=True)}
        reduced = task.apply_output_head(heads, {name: values.cpu().numpy() for name, values in inputs.items()})
        return loss, tuple(torch.from_numpy(reduced[name]) for name in task.model_outputs), targets


def _describe_batch(tokenizer: PreTrainedTokenizerFast, inputs: Mapping[str, torch.Tensor]) -> str:
    """Describe the first texts of a batch and their targets."""
    ids = inputs["input_ids"]
    texts = tokenizer.batch_decode(ids.reshape(-1, ids.shape[-1])[:SHOWN_ROWS], skip_special_tokens=True)
    quoted = ", ".join(repr(text if len(text) <= 80 else f"{text[:80]}…") for text in texts)
    targets = {
        name: values.reshape(len(values), -1)[:SHOWN_ROWS].squeeze().tolist()
        for name, values in inputs.items()
        if name not in FIELDS
    }
    return f"{quoted} and {len(ids) - len(texts)} more, {targets}" if len(ids) > len(texts) else f"{quoted}, {targets}"


def _decay_by_layer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, decay: float) -> None:
    """Split the optimizer's groups by layer: a layer's learning rate is multiplied by ``decay`` once per layer above it."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = [int(found[1]) for name in names.values() if (found := LAYER.search(name))]
    top = max(layers, default=-1) + 2
    groups, optimizer.param_groups = optimizer.param_groups, []
    for group in groups:
        by_depth: dict[int, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            by_depth.setdefault(_depth(names[id(parameter)], top), []).append(parameter)
        for depth, parameters in sorted(by_depth.items()):
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * decay ** (top - depth)})


def _depth(name: str, top: int) -> int:
    """Return 0 for embeddings, 1 and more for layers, and ``top`` for the head."""
    if found := LAYER.search(name):
        return int(found[1]) + 1
    return 0 if "embed" in name else top


def outputs_by_name(predictions: Any, task: TrainedTask, origins: Origins) -> Arrays:
    """Name the outputs that the trainer collected.

    Args:
        predictions: What ``Trainer.predict`` returned.
        task: The task.
        origins: The labelled row that each model row comes from.

    Returns:
        ``model_outputs`` by name, ``[model rows, …]``.
    """
    outputs = predictions if isinstance(predictions, tuple) else (predictions,)
    if task.grouped:  # [groups, rows of the largest group]
        counts = np.bincount(origins.sample_mapping)[:, None]
        outputs = tuple(values[np.arange(values.shape[1]) < counts][:, None] for values in outputs)
    elif isinstance(task, OwnLossTask):  # [labelled rows, requests of each, …]
        outputs = tuple(values.swapaxes(0, 1).reshape(-1, *values.shape[2:]) for values in outputs)
    return dict(zip(task.model_outputs, outputs, strict=True))
