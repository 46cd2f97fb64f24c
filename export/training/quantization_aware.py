"""Quantization-aware training: the model trains with the int8 rounding of the exported model. Imports torch.

Gradients pass the rounding unchanged (straight-through estimator, Bengio et al. 2013; Jacob et al. 2018).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch.nn import functional

WEIGHT_STEPS = 127
"""Weights are rounded symmetrically to -127 … 127. Each output channel of a linear layer has its own scale."""
ACTIVATION_STEPS = 255
"""Activations are rounded to 0 … 255 between their own minimum and maximum; the range always includes zero."""


@contextlib.contextmanager
def fake_quantized(model: torch.nn.Module, *, enabled: bool) -> Iterator[None]:
    """Compute all linear layers and embeddings with fake quantization inside the block, as ``export.optimize`` quantizes them.

    The weights stay float32.

    Args:
        model: Model to change in place.
        enabled: Whether to change it at all.
    """
    changed = [module for module in model.modules() if enabled and isinstance(module, torch.nn.Linear | torch.nn.Embedding)]
    for module in changed:
        module.forward = partial(_linear if isinstance(module, torch.nn.Linear) else _embedding, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the method of the class takes effect again


def _linear(module: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    scale = _scale(module.weight.detach().abs().amax(dim=1), WEIGHT_STEPS)
    zero = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
    weight = torch.fake_quantize_per_channel_affine(module.weight, scale, zero, 0, -WEIGHT_STEPS, WEIGHT_STEPS)
    return functional.linear(_activation(inputs), weight, module.bias)


def _activation(values: torch.Tensor) -> torch.Tensor:
    minimum, maximum = values.detach().amin().clamp(max=0), values.detach().amax().clamp(min=0)
    scale = _scale(maximum - minimum, ACTIVATION_STEPS)
    zero = (-minimum / scale).round().clamp(0, ACTIVATION_STEPS).to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, ACTIVATION_STEPS)


def _embedding(module: torch.nn.Embedding, inputs: torch.Tensor) -> torch.Tensor:
    scale = _scale(module.weight.detach().abs().amax(), WEIGHT_STEPS)
    zero = torch.zeros((), dtype=torch.int32, device=scale.device)
    weight = torch.fake_quantize_per_tensor_affine(module.weight, scale, zero, -WEIGHT_STEPS, WEIGHT_STEPS)
    return functional.embedding(inputs, weight, module.padding_idx)


def _scale(width: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the float32 step width; positive even where all values are 0."""
    return (width.float() / steps).clamp(min=torch.finfo(torch.float32).tiny)
