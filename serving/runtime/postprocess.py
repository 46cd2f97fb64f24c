"""Last step of the ensemble: logits → answers. Triton's Python backend runs this file as ``<name>_postprocess/1/model.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .tasks import load_task


class TritonPythonModel:
    """Turns the logits of all requests of a batch into answers at once, and hands each request its rows."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self._task = load_task(settings["task"], settings["settings"])

    def execute(self, requests: list[Any]) -> list[Any]:
        parts = [pb_utils.get_input_tensor_by_name(request, self._task.logits).as_numpy() for request in requests]
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        answers = self._task.answers(logits)
        responses, start = [], 0
        for part in parts:
            rows = slice(start, start + len(part))
            start += len(part)
            if np.isfinite(part).all():
                tensors = [pb_utils.Tensor(name, array[rows]) for name, array in answers.items()]
                responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            else:
                responses.append(pb_utils.InferenceResponse(error=_not_finite()))
        return responses


def _not_finite() -> Any:
    return pb_utils.TritonError("the model gave values that are not finite for this input", pb_utils.TritonError.INTERNAL)
