"""The original in the forms in which peers of the engine run it: Optimum's graph, and CTranslate2's models."""

from __future__ import annotations

from pathlib import Path

from benchmarks.generation.generation_runs import CTRANSLATE2
from export import convert
from serving.errors import first_line
from serving.reporting import logger

QUANTIZATIONS = {"fp32": "float32", "int8": "int8"}


def exported_by_optimum(checkpoint: Path, task: str, folder: Path) -> Path | None:
    """Export a checkpoint as Optimum does by itself, with its cache as inputs and outputs.

    Returns:
        The folder; None if Optimum does not support the architecture, which is reported.
    """
    from optimum.exporters.onnx import main_export

    logger.info("exporting the graph as Optimum exports it")
    try:
        with convert.silence_exporters():
            main_export(str(checkpoint), folder, task=f"{task}-with-past", do_validation=False, device="cpu")
    except Exception as error:  # what is not supported is told by errors of every type
        logger.warning(f"exported.fp32 is left out: Optimum cannot export the checkpoint: {first_line(error)[:300]}")
        return None
    return folder


def convert_for_ctranslate2(checkpoint: Path, folder: Path) -> bool:
    """Convert a checkpoint to CTranslate2's models, in one folder for each precision.

    Returns:
        Whether CTranslate2 supports the architecture. If not, that is reported.
    """
    from ctranslate2.converters import TransformersConverter

    for precision, quantization in QUANTIZATIONS.items():
        try:
            TransformersConverter(str(checkpoint)).convert(str(folder / precision), quantization=quantization)
        except Exception as error:  # as above
            logger.warning(f"{CTRANSLATE2} is left out: it cannot convert the checkpoint: {first_line(error)[:300]}")
            return False
    return True
