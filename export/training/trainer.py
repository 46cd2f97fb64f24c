"""``transformers.Trainer``, as tasks need it. Imports torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import Seq2SeqTrainer

from export.tasks.exported import ExportedTask
from export.tasks.trained import OwnLossTask, TrainedTask
from export.training.batches import TEACHER_LOGITS
from export.training.distillation import Teacher
from export.training.losses import Loss
from serving.errors import DivergedError
from serving.runtime.tokenization import FIELDS
from serving.runtime.types import Arrays, Origins

SHOWN = 3
"""Rows of a batch that an error shows."""
LAYER = re.compile(r"\.(?:layers?|h|blocks?)\.(\d+)\.")
"""Where the name of a parameter says which layer it is of."""


class TaskTrainer(Seq2SeqTrainer):  # type: ignore[misc]  # the library is untyped
    """Evaluates rows in their order, with the loss that the task brings where its model has none.

    What the model says of a batch is reduced to what the task reads of it before it is kept for the metric: what it says of every
    token of an evaluation set may be more than fits into memory.
    """

    def __init__(
        self,
        task: TrainedTask,
        tokenizer: Any,
        *,
        loss: Loss | None = None,
        teacher: Teacher | None = None,
        layer_decay: float = 1,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._task = task
        self._tokenizer = tokenizer  # not the library's processing_class, whose special tokens it writes into the model's config
        self._loss = loss
        self._teacher = teacher
        self._layer_decay = layer_decay
        if loss or teacher:  # the loss is then a mean over the batch, whatever the model makes of how many targets there are
            self.model_accepts_loss_kwargs = False

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Grouping by length shuffles these too, and no prediction would stand beside its reference."""
        return torch.utils.data.SequentialSampler(eval_dataset)

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, **arguments: Any) -> Any:
        """The loss; with the task's own, ``return_outputs`` gives ``model_outputs`` as ``[labelled rows, requests of each, …]``."""
        if self._loss or (self._teacher and model.training):
            loss, outputs = self._replaced_loss(model, inputs)
            return (loss, outputs) if return_outputs else loss
        if isinstance(self._task, OwnLossTask):
            return self._own_loss(self._task, model, inputs, return_outputs)
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **arguments)

    def _own_loss(self, task: OwnLossTask, model: Any, inputs: Mapping[str, Any], return_outputs: bool) -> Any:
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

    def _replaced_loss(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
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

    def training_step(self, model: Any, inputs: Mapping[str, Any], *arguments: Any, **named: Any) -> Any:
        """A step's loss, its gradients added to those there are.

        Raises:
            DivergedError: the loss is infinite or no number; the message shows the batch.
        """
        loss = super().training_step(model, inputs, *arguments, **named)
        if not torch.isfinite(loss):
            raise DivergedError(
                f"training diverged: the loss of step {self.state.global_step + 1} is {loss.item()}; "
                f"its batch: {_shown(self._tokenizer, inputs)}",
                hint="give a smaller --learning-rate; if it is the first step, look at those rows",
            )
        return loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The library rounds the steps of warm-up up, and the first of them learns nothing: in a short run that may be all."""
        if num_training_steps * self.args.warmup_ratio < 1:
            self.args.warmup_ratio = 0.0
        return super().create_scheduler(num_training_steps, optimizer)

    def create_optimizer(self) -> Any:
        """AdamW; with a layer decay each layer's weights get a rate of their own."""
        optimizer = super().create_optimizer()
        if self._layer_decay != 1:
            _decay_by_layer(optimizer, self.model, self._layer_decay)
        return optimizer

    def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
        """What the model says of all rows. The last batch is filled up with rows that were there already, and so are the shares of
        several processes: the library's trainer for encoder-decoders would count those twice."""
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*arguments, **named)

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        """Loss, outputs and targets of a batch."""
        loss, outputs, targets = super().prediction_step(model, inputs, *arguments, **named)
        task = self._task
        if not (isinstance(task, ExportedTask) and task.has_output_head) or isinstance(task, OwnLossTask) or outputs is None:
            return loss, outputs, targets
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        heads = {name: head.float().cpu().numpy() for name, head in zip(task.heads, found, strict=True)}
        reduced = task.apply_output_head(heads, {name: values.cpu().numpy() for name, values in inputs.items()})
        return loss, tuple(torch.from_numpy(reduced[name]) for name in task.model_outputs), targets


def _shown(tokenizer: Any, inputs: Mapping[str, Any]) -> str:
    """The first texts of a batch, and its targets."""
    ids = inputs["input_ids"]
    texts = tokenizer.batch_decode(ids.reshape(-1, ids.shape[-1])[:SHOWN], skip_special_tokens=True)
    quoted = ", ".join(repr(text if len(text) <= 80 else f"{text[:80]}…") for text in texts)
    targets = {
        name: values.reshape(len(values), -1)[:SHOWN].squeeze().tolist() for name, values in inputs.items() if name not in FIELDS
    }
    return f"{quoted} and {len(ids) - len(texts)} more, {targets}" if len(ids) > len(texts) else f"{quoted}, {targets}"


def _decay_by_layer(optimizer: Any, model: Any, decay: float) -> None:
    """Split the optimizer's groups by how far below the head their weights stand: their share of the rate is ``decay`` to that."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = [int(found[1]) for name in names.values() if (found := LAYER.search(name))]
    top = max(layers, default=-1) + 2
    groups, optimizer.param_groups = optimizer.param_groups, []
    for group in groups:
        by_depth: dict[int, list[Any]] = {}
        for parameter in group["params"]:
            by_depth.setdefault(_depth(names[id(parameter)], top), []).append(parameter)
        for depth, parameters in sorted(by_depth.items()):
            optimizer.add_param_group({**group, "params": parameters, "lr": group["lr"] * decay ** (top - depth)})


def _depth(name: str, top: int) -> int:
    """0 for embeddings, then the layers, ``top`` for what stands above them."""
    if found := LAYER.search(name):
        return int(found[1]) + 1
    return 0 if "embed" in name else top


def outputs_by_name(predictions: Any, task: TrainedTask, origins: Origins) -> Arrays:
    """What the trainer collected of the model's outputs → ``model_outputs`` by name, ``[model rows, …]``."""
    outputs = predictions if isinstance(predictions, tuple) else (predictions,)
    if task.grouped:  # [groups, most rows of one]
        counts = np.bincount(origins.sample_mapping)[:, None]
        outputs = tuple(values[np.arange(values.shape[1]) < counts][:, None] for values in outputs)
    elif isinstance(task, OwnLossTask):  # [labelled rows, requests of each, …]
        outputs = tuple(values.swapaxes(0, 1).reshape(-1, *values.shape[2:]) for values in outputs)
    return dict(zip(task.model_outputs, outputs, strict=True))
