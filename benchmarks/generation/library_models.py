"""The models of the libraries that the engine is compared with, as a worker loads them. Each imports its own library only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.generation.generation_jobs import GenerationJob
from export.tasks import task_of_bundle
from serving.bundle import Bundle
from serving.machine import cores

CT2_MODEL = "model.bin"
CT2_TYPES = {"fp32": "float32", "int8": "int8"}
"""CTranslate2's names of precisions."""
OPTIMUM_FILES = {"text-generation": "model.onnx", "text2text-generation": "decoder_model_merged.onnx"}
"""The graph with the cache that Optimum exports, by Optimum's name of the task."""


def load_original(job: GenerationJob, bundle: Bundle) -> Any:
    """Load a checkpoint in fp32."""
    import torch
    import transformers

    auto = getattr(transformers, task_of_bundle(bundle).auto_model)
    return auto.from_pretrained(job.source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False).eval()


def load_exported(optimum_class: Any, folder: Path) -> Any:
    """Load graphs as Optimum exports them, to run on as many threads as PyTorch."""
    import torch
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return optimum_class.from_pretrained(folder, use_io_binding=False, session_options=options)


def ctranslate2_threads() -> int:
    """Return the threads that CTranslate2 gets: as PyTorch, those of the variable ``OMP_NUM_THREADS``, otherwise one a core."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else cores()


def ctranslate2_precision(compute_type: str) -> str:
    """Name the precision that CTranslate2 computes in, by the name that it reports."""
    return {"float32": "fp32", "int8": "int8", "int8_float32": "int8"}[compute_type]


def ctranslate2_model(job: GenerationJob) -> Path:
    """Return the file that CTranslate2 loads."""
    return job.source / CT2_MODEL
