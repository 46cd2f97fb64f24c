"""The original in the forms in which peers of the engine run it: Optimum's graph, and CTranslate2's models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from export import convert
from serving.errors import first_line
from serving.reporting import logger

CTRANSLATE2 = "ctranslate2"
QUANTIZATIONS = {"fp32": "float32", "int8": "int8"}


def has_ctranslate2() -> bool:
    """Whether CTranslate2 is installed."""
    return importlib.util.find_spec(CTRANSLATE2) is not None


def export_by_optimum(checkpoint: Path, task: str, folder: Path) -> str:
    """Export a checkpoint as Optimum does by itself, with its cache as inputs and outputs.

    Args:
        checkpoint: The checkpoint.
        task: Optimum's name of the task.
        folder: An empty folder.

    Returns:
        Why Optimum cannot export the architecture; empty if it has.
    """
    from optimum.exporters.onnx import main_export

    logger.info("exporting the graph as Optimum exports it")
    try:
        with convert.silence_exporters():
            main_export(str(checkpoint), folder, task=f"{task}-with-past", do_validation=False, device="cpu")
    except Exception as error:  # what is not supported is told by errors of every type
        return f"Optimum cannot export the checkpoint: {first_line(error)[:300]}"
    return ""


def convert_for_ctranslate2(checkpoint: Path, folder: Path) -> str:
    """Convert a checkpoint to CTranslate2's models, in one folder for each precision.

    Returns:
        Why CTranslate2 cannot convert it; empty if it has.
    """
    from ctranslate2.converters import TransformersConverter

    for precision, quantization in QUANTIZATIONS.items():
        try:
            TransformersConverter(str(checkpoint)).convert(str(folder / precision), quantization=quantization)
        except Exception as error:  # as above
            return f"it cannot convert the checkpoint: {first_line(error)[:300]}"
    return ""
