"""The model card of a fine-tuned checkpoint, from what its manifest records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def model_card(fields: Mapping[str, Any]) -> str:
    """Markdown with the Hub's YAML header.

    Args:
        fields: of the checkpoint's manifest.
    """
    return "\n".join([*_header(fields), "", *_description(fields), "", *_figures(fields), "", *_training(fields), ""])


def _header(fields: Mapping[str, Any]) -> list[str]:
    return [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {fields['task']}",
        f"base_model: {json.dumps(fields['base_checkpoint'])}",
        "---",
    ]


def _description(fields: Mapping[str, Any]) -> list[str]:
    labels = f"Labels: {', '.join(fields['labels'])}. " if fields["labels"] else ""
    return [
        f"# {fields['name']}",
        "",
        f"`{fields['base_checkpoint']}` fine-tuned for {fields['task']}. {labels}"
        f"Takes {'pairs of texts' if fields['pair'] else 'single texts'}, cut at {fields['max_length']} tokens.",
    ]


def _figures(fields: Mapping[str, Any]) -> list[str]:
    figures = fields["figures"]
    metrics = sorted(figures["validation"])
    rows = [
        f"| {split} | {figures['rows'][split]} | " + " | ".join(f"{figures[split][key]:.4f}" for key in metrics) + " |"
        for split in ("validation", "test")
        if split in figures
    ]
    return [
        "## Figures",
        "",
        "| split | rows | " + " | ".join(metrics) + " |",
        "| --- | ---: | " + " | ".join("---:" for _ in metrics) + " |",
        *rows,
        "",
        f"The best epoch by validation {fields['main_metric']} was kept: {figures['best_epoch']} of {figures['epochs']}.",
    ]


def _training(fields: Mapping[str, Any]) -> list[str]:
    figures, training, data = fields["figures"], fields["training"], fields["data"]
    return [
        "## Training",
        "",
        f"{figures['rows']['train']} rows of `{data['train']}`; validation: {data['validation']}; test: {data['test']}.",
        f"{', '.join(f'{key} {value}' for key, value in training.items())}; {figures['seconds']:.0f} s. Made by tritonize.",
    ]
