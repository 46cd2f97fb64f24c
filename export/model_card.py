"""The model card of a fine-tuned checkpoint, made from its manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from export.metric import shown
from export.quickstart import ORIGINALS
from export.tasks import is_exported, trained_class
from serving.manifests import CheckpointManifest
from serving.reporting import plural


def model_card(manifest: CheckpointManifest) -> str:
    """Return the card as Markdown with the Hub's YAML header.

    Args:
        manifest: The manifest; the checksums of the files are not needed.
    """
    parts = [_description(manifest), _use(manifest), _figures(manifest), _data(manifest), _training(manifest), _limits(manifest)]
    return "\n".join([*_header(manifest), "", *(line for part in parts for line in (*part, ""))])


def _header(manifest: CheckpointManifest) -> Iterator[str]:
    yield from ("---", "library_name: transformers", f"pipeline_tag: {manifest.task}")
    if re.fullmatch(r"[\w-]+(\.[\w-]+)*/[\w.-]+", manifest.base_checkpoint):  # a local path means nothing on the Hub
        yield f"base_model: {json.dumps(manifest.base_checkpoint)}"
    yield from ("metrics:", f"- {manifest.main_metric}", "tags:", "- tritonize", "---")


def _description(manifest: CheckpointManifest) -> Iterator[str]:
    labels = f"Labels: {', '.join(manifest.labels)}. " if manifest.labels else ""
    original = f" ({ORIGINALS[manifest.base_checkpoint]})" if manifest.base_checkpoint in ORIGINALS else ""
    yield from (
        f"# {manifest.name}",
        "",
        f"`{manifest.base_checkpoint}`{original} fine-tuned for {manifest.task}. {labels}{_taken(manifest)}",
    )


def _taken(manifest: CheckpointManifest) -> str:
    length = manifest.max_length
    if trained_class(manifest.task).causal:
        return f"Trained on texts in chunks of {length} tokens."
    written = f"; writes up to {manifest.settings['max_new_tokens']}" if trained_class(manifest.task).generates else ""
    return f"Takes {'pairs of texts' if manifest.pair else 'single texts'}, cut at {length} tokens{written}."


def _use(manifest: CheckpointManifest) -> Iterator[str]:
    name = manifest.name
    example = trained_class(manifest.task)
    source, target = (manifest.settings.get(f"{side}_language") for side in ("source", "target"))
    more = f', src_lang="{source}", tgt_lang="{target}"' if source else ""
    more += "".join(f", {key}={value!r}" for key, value in example.truncating_options.items())
    more += f", num_beams={manifest.settings['num_beams']}" if example.generates else ""  # as measured
    yield from ("## How to use", "")
    if example.has_pipeline:
        yield from (
            "```python",
            "from transformers import pipeline",
            "",
            f'model = pipeline("{manifest.task}", "FOLDER or OWNER/NAME"{more})',
            "```",
        )
    if not is_exported(example):
        return
    yield from (
        *([""] if example.has_pipeline else []),
        "Served by NVIDIA Triton as ONNX, text in and answers out:",
        "",
        "```console",
        f"$ tritonize export --name {name} --task {manifest.task} --checkpoint FOLDER-or-OWNER/NAME",
    )
    yield from (f"$ tritonize package --name {name}", "$ tritonize serve --detach", f"$ echo '…' | tritonize predict {name}", "```")


def _figures(manifest: CheckpointManifest) -> Iterator[str]:
    figures = manifest.figures
    metrics = sorted(figures.validation)
    yield from (
        "## Figures",
        "",
        "| split | rows | " + " | ".join(metrics) + " |",
        "| --- | ---: | " + " | ".join("---:" for _ in metrics) + " |",
    )
    for split, measured in figures.splits.items():
        yield f"| {split} | {figures.rows[split]} | " + " | ".join(shown(measured[key], ".4f") for key in metrics) + " |"
    for split, measured in figures.baseline.splits.items() if figures.baseline is not None else ():
        cells = (shown(measured[key], ".4f") if key in measured else "" for key in metrics)
        yield f"| {split}, baseline | {figures.rows[split]} | " + " | ".join(cells) + " |"
    yield ""
    if note := trained_class(manifest.task).metric_note:
        yield f"Metrics: {note}."
    if figures.baseline is not None:
        yield f"Baseline: {figures.baseline.description}."
    low, high = figures.interval
    yield (
        f"{manifest.main_metric} on the {manifest.evaluation_split} rows is between {low:.4f} and {high:.4f} (95 %, bootstrapped "
        "over the rows)."
    )
    yield f"The weights are those of epoch {figures.best_epoch} of {figures.epochs}, the best by validation {manifest.main_metric}."
    for name, value in manifest.fitted_settings.items():
        yield f"The {name} that does best on the validation rows is {value:g}."


def _data(manifest: CheckpointManifest) -> Iterator[str]:
    data = manifest.data
    yield from ("## Data", "")
    rows = manifest.figures.rows["train"]
    yield f"{rows} rows of `{data.train}`; validation: {data.validation}; test: {data.test or 'none'}."
    shared = [f"{count} of the {split} rows" for split, count in data.shared_rows.items() if count]
    if shared:
        kept = "were kept in" if data.leaks_kept else "were removed from"
        duplicate = "duplicate training rows (ignoring case, spaces and punctuation)"
        yield f"{' and '.join(shared)} {duplicate}; the duplicates {kept} the training rows."
    if data.contradicting_texts:
        count = data.contradicting_texts
        yield f"{count} training {plural(count, 'text has', 'texts have')} conflicting labels."
    if (unknown := data.unknown_tokens) is not None and unknown.tokens:
        yield (
            f"{unknown.rows:.1%} of the training rows have unknown tokens, which the vocabulary lacks: {unknown.tokens:.2%} of all "
            "tokens."
        )
    if shares := data.label_shares:
        yield f"Training rows by label: {', '.join(f'{label} {share:.1%}' for label, share in shares.items())}."


def _training(manifest: CheckpointManifest) -> Iterator[str]:
    figures = manifest.figures
    yield from ("## Training", "", f"{', '.join(f'{key} {value}' for key, value in manifest.training.items())}.")
    share = figures.trained_parameters / figures.parameters
    yield f"{figures.trained_parameters:,} parameters were trained, {share:.1%} of the model's {figures.parameters:,}."
    if adapter := manifest.adapter:
        chosen = "".join(f", {key} {value}" for key, value in adapter.options.items())
        yield f"Adapter: {adapter.method}{chosen}, merged into the weights; the adapter alone is in `adapter/`."
    if teacher := manifest.distillation:
        parts = f", {teacher.parts} random spans of each text besides" if teacher.parts else ""
        yield f"Teacher: `{teacher.teacher}`, weight {teacher.weight:g}, temperature {teacher.temperature:g}{parts}."
    if search := figures.search:
        yield f"The hyperparameters are the best of {search.trials} {plural(search.trials, 'trial')} by the validation rows."
    on_gpu = "" if figures.peak_gpu_mib is None else f", on the GPU {figures.peak_gpu_mib} MiB"
    yield f"{figures.steps} steps, {figures.seconds:.0f} s, peak memory {figures.peak_rss_mib} MiB{on_gpu}. Made by tritonize."


def _limits(manifest: CheckpointManifest) -> Iterator[str]:
    yield from ("## Intended use and limits", "")
    task = trained_class(manifest.task)
    cut = "" if task.causal else f"; texts are truncated at {manifest.max_length} tokens"
    last = (
        "Scores are not calibrated probabilities: `tritonize benchmark` measures the calibration error."
        if is_exported(task)
        else "It writes likely text, which may be false."
    )
    yield (
        "For texts like those it was trained and measured on. Its quality on texts of another kind, language or length is "
        f"unknown{cut}. It may have kept errors and biases of the base checkpoint and of the data. {last}"
    )
