"""Writes the requests that Triton runs through each step before it reports ready."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from serving.bundle import Bundle
from serving.ensemble import Graph, StepWarmups, Warmup
from serving.model_names import is_single_model
from serving.plan import Plan
from serving.runtime.digest import MODEL_DIGEST, REQUEST_DIGEST, row_digests
from serving.runtime.metadata import METADATA, pack


def write_warmups(folder: Path, bundle: Bundle, plan: Plan, name: str, graph: Graph) -> StepWarmups:
    """Write a short request (the task's example) and a long one that fills the model.

    Args:
        folder: Folder of the models.
        bundle: The bundle.
        plan: How the model is served. On a GPU the long request has as many rows as the model accepts.
        name: Name of the ensemble.
        graph: Inputs and outputs of the model.
    """
    texts, ids, logits = [], [], []
    task, encoder = bundle.encoder_task, bundle.encoder([tensor.name for tensor in graph.inputs])
    for label, request in (("short", task.example), ("long", task.long_example(bundle.max_length))):
        encoded = {tensor: text.encode() for tensor, text in request.items()}
        payloads = {tensor: bytes_tensor(text) for tensor, text in encoded.items()}
        digests = row_digests({tensor: [text] for tensor, text in encoded.items()})
        first = folder / (name if is_single_model(plan.layout) else f"{name}_preprocess")
        texts.append(save_warmup(first, label, 1, payloads, dict.fromkeys(payloads, (1,))))
        if is_single_model(plan.layout):
            continue
        features = task.preprocess([[text] for text in request.values()], encoder)
        arrays = encoder.arrays(features.encodings[:1])
        rows = graph.max_rows if label == "long" and plan.device == "gpu" else 1
        raw = {tensor: array.tobytes() for tensor, array in arrays.items()} | {REQUEST_DIGEST: digests.tobytes()}
        shapes = {tensor: array.shape[1:] for tensor, array in arrays.items()} | {REQUEST_DIGEST: (1,)}
        ids.append(save_warmup(folder / f"{name}_model", label, rows, raw, shapes))
        length = next(iter(arrays.values())).shape[1] if task.token_level else 1  # any other dynamic axis may be 1
        shapes = {tensor.name: tuple(length if dim < 0 else dim for dim in tensor.dims) for tensor in graph.outputs}
        raw = {tensor: np.zeros(shape, np.float32).tobytes() for tensor, shape in shapes.items()}
        raw[MODEL_DIGEST], shapes[MODEL_DIGEST] = digests.tobytes(), (1,)
        if task.carries_metadata:
            packed = pack(features.origins.sample_mapping[:1], digests, features.origins.metadata[:1])[0, 0]
            raw[METADATA], shapes[METADATA] = bytes_tensor(packed), (1,)
        logits.append(save_warmup(folder / f"{name}_postprocess", label, 1, raw, shapes))
    return StepWarmups(preprocess=tuple(texts), model=tuple(ids), postprocess=tuple(logits))


def save_warmup(model: Path, label: str, rows: int, payloads: dict[str, bytes], dims: dict[str, tuple[int, ...]]) -> Warmup:
    """Write the tensors of a warm-up request into the folder of a model."""
    (model / "warmup").mkdir(parents=True, exist_ok=True)
    files = {tensor: f"{label}_{tensor}" for tensor in payloads}
    for tensor, payload in payloads.items():
        (model / "warmup" / files[tensor]).write_bytes(payload)
    return Warmup(name=label, batch_size=rows, files=files, dims=dims)


def bytes_tensor(element: bytes) -> bytes:
    """Encode one element of a BYTES tensor as Triton does: its length, then its bytes."""
    return struct.pack("<I", len(element)) + element
