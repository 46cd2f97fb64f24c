"""Quantisation-aware training: a model learns with the rounding of the int8 that it will be served in. Imports torch.

The gradient passes the rounding as if there were none (straight-through estimator, Bengio et al. 2013; Jacob et al. 2018).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional

WEIGHTS = 127
"""Weights are rounded to -127 … 127 steps, about zero; each output of a linear layer has steps of its own."""
ACTIVATIONS = 255
"""What flows through is rounded to 0 … 255 steps between its own least and largest value, or zero."""


@contextlib.contextmanager
def rounded(model: Any, *, on: bool) -> Iterator[None]:
    """In the block every linear layer and embedding computes as ``export.optimize`` quantises it; the weights stay float32."""
    changed = [module for module in model.modules() if on and isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    for module in changed:
        module.forward = partial(_linear if isinstance(module, torch.nn.Linear) else _embedding, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own comes back


def _linear(module: Any, inputs: Any) -> Any:
    scale = _step(module.weight.detach().abs().amax(dim=1), WEIGHTS)
    zero = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
    weight = torch.fake_quantize_per_channel_affine(module.weight, scale, zero, 0, -WEIGHTS, WEIGHTS)
    return functional.linear(_activation(inputs), weight, module.bias)


def _activation(values: Any) -> Any:
    least, largest = values.detach().amin().clamp(max=0), values.detach().amax().clamp(min=0)
    scale = _step(largest - least, ACTIVATIONS)
    zero = (-least / scale).round().clamp(0, ACTIVATIONS).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, ACTIVATIONS)


def _embedding(module: Any, inputs: Any) -> Any:
    scale = _step(module.weight.detach().abs().amax(), WEIGHTS)
    zero = torch.zeros((), dtype=torch.int32, device=scale.device)
    weight = torch.fake_quantize_per_tensor_affine(module.weight, scale, zero, -WEIGHTS, WEIGHTS)
    return functional.embedding(inputs, weight, module.padding_idx)


def _step(width: Any, steps: int) -> Any:
    """float32, never 0: of weights that are all 0 too."""
    return (width.float() / steps).clamp(min=torch.finfo(torch.float32).tiny)
