"""The model card of a fine-tuned checkpoint, from what its manifest records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from export.tasks import is_exported, trained_class

Fields = Mapping[str, Any]
"""Of the checkpoint's manifest."""


def model_card(fields: Fields) -> str:
    """Markdown with the Hub's YAML header."""
    parts = [_description(fields), _use(fields), _figures(fields), _data(fields), _training(fields), _limits(fields)]
    return "\n".join([*_header(fields), "", *(line for part in parts for line in (*part, ""))])


def _header(fields: Fields) -> Iterator[str]:
    yield from ("---", "library_name: transformers", f"pipeline_tag: {fields['task']}")
    if re.fullmatch(r"[\w-]+(\.[\w-]+)*/[\w.-]+", fields["base_checkpoint"]):  # a folder of somebody's disk says nothing there
        yield f"base_model: {json.dumps(fields['base_checkpoint'])}"
    yield from ("metrics:", f"- {fields['main_metric']}", "tags:", "- tritonize", "---")


def _description(fields: Fields) -> Iterator[str]:
    labels = f"Labels: {', '.join(fields['labels'])}. " if fields["labels"] else ""
    yield from (
        f"# {fields['name']}",
        "",
        f"`{fields['base_checkpoint']}` fine-tuned for {fields['task']}. {labels}{_taken(fields)}",
    )


def _taken(fields: Fields) -> str:
    length = fields["max_length"]
    if trained_class(fields["task"]).causal:
        return f"Learnt from texts {length} tokens at a time."
    written = f"; writes up to {fields['settings']['max_new_tokens']}" if trained_class(fields["task"]).generates else ""
    return f"Takes {'pairs of texts' if fields['pair'] else 'single texts'}, cut at {length} tokens{written}."


def _use(fields: Fields) -> Iterator[str]:
    name = fields["name"]
    example = trained_class(fields["task"])
    source, target = (fields["settings"].get(f"{side}_language") for side in ("source", "target"))
    more = f', src_lang="{source}", tgt_lang="{target}"' if source else ""
    more += f", num_beams={fields['settings']['num_beams']}" if example.generates else ""  # as it was measured with
    yield from ("## How to use", "")
    if example.has_pipeline:
        yield from (
            "```python",
            "from transformers import pipeline",
            "",
            f'model = pipeline("{fields["task"]}", "FOLDER or OWNER/NAME"{more})',
            "```",
        )
    if not is_exported(example):
        return
    yield from (
        *([""] if example.has_pipeline else []),
        "Served by NVIDIA Triton as ONNX, text in and answers out:",
        "",
        "```console",
        f"$ tritonize export --name {name} --task {fields['task']} --checkpoint FOLDER-or-OWNER/NAME",
    )
    yield from (f"$ tritonize package --name {name}", "$ tritonize serve --detach", f"$ echo '…' | tritonize predict {name}", "```")


def _figures(fields: Fields) -> Iterator[str]:
    figures = fields["figures"]
    metrics = sorted(figures["validation"])
    yield from (
        "## Figures",
        "",
        "| split | rows | " + " | ".join(metrics) + " |",
        "| --- | ---: | " + " | ".join("---:" for _ in metrics) + " |",
    )
    for split in ("validation", "test"):
        if split in figures:
            yield f"| {split} | {figures['rows'][split]} | " + " | ".join(f"{figures[split][key]:.4f}" for key in metrics) + " |"
    yield ""
    low, high = figures["interval"]
    yield (
        f"{fields['main_metric']} on the {fields['evaluation_split']} rows is between {low:.4f} and {high:.4f} (95 %, bootstrapped "
        "over the rows)."
    )
    yield f"The best epoch by validation {fields['main_metric']} was kept: {figures['best_epoch']} of {figures['epochs']}."
    for name, value in fields["fitted_settings"].items():
        yield f"The {name} that does best on the validation rows is {value:g}."


def _data(fields: Fields) -> Iterator[str]:
    figures, data = fields["figures"], fields["data"]
    yield from ("## Data", "")
    yield f"{figures['rows']['train']} rows of `{data['train']}`; validation: {data['validation']}; test: {data['test'] or 'none'}."
    told = [f"{count} of the {split} rows" for split, count in data["shared_rows"].items() if count]
    if told:
        kept = "were learnt from" if data["leaks_kept"] else "were not learnt from"
        yield f"{' and '.join(told)} stand among the training rows, but for case, spaces and punctuation; those {kept}."
    if data["contradicting_texts"]:
        yield f"{data['contradicting_texts']} texts stand there with more than one label."
    if shares := data["label_shares"]:
        yield f"Training rows by label: {', '.join(f'{label} {share:.1%}' for label, share in shares.items())}."


def _training(fields: Fields) -> Iterator[str]:
    figures, training = fields["figures"], fields["training"]
    yield from ("## Training", "", f"{', '.join(f'{key} {value}' for key, value in training.items())}.")
    share = figures["trained_parameters"] / figures["parameters"]
    yield f"{figures['trained_parameters']:,} numbers were trained, {share:.1%} of the model's {figures['parameters']:,}."
    if adapter := fields["adapter"]:
        chosen = "".join(f", {key} {value}" for key, value in adapter["options"].items())
        yield f"Adapter: {adapter['method']}{chosen}, merged into the weights; alone it is in `adapter/`."
    if teacher := fields["distillation"]:
        parts = f", {teacher['parts']} parts of each text besides" if teacher["parts"] else ""
        yield f"Teacher: `{teacher['teacher']}`, weight {teacher['weight']:g}, temperature {teacher['temperature']:g}{parts}."
    if search := figures.get("search"):
        yield f"Hyper-parameters are the best of {search['trials']} trials by the validation rows."
    memory = f"{figures['peak_rss_mib']} MiB" + (f", on the GPU {figures['peak_gpu_mib']} MiB" if "peak_gpu_mib" in figures else "")
    yield f"{figures['steps']} steps, {figures['seconds']:.0f} s, at most {memory} of memory. Made by tritonize."


def _limits(fields: Fields) -> Iterator[str]:
    yield from ("## Intended use and limits", "")
    task = trained_class(fields["task"])
    cut = "" if task.causal else f"; what follows {fields['max_length']} tokens of a text is not read"
    last = (
        "Scores are no promise of how often it is right: `tritonize benchmark` measures how far they are from that."
        if is_exported(task)
        else "It writes what is likely, true or not."
    )
    yield (
        "For texts like those it was trained and measured on. On texts of another kind, language or length its figures are not "
        f"known{cut}. What the base checkpoint and the data got wrong, it may have kept. {last}"
    )
