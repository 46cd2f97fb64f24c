"""Compare the exported graph, fed as it is served, with the answers of the library that a checkpoint is made for.

:mod:`export.verify` compares graphs that are fed alike, so wrong inputs would go unnoticed. Here the library gets nothing but the
checkpoint and the raw texts, one by one, and the graph gets what the served preprocessing makes of them, in padded batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from export.model_inputs import fed_inputs
from export.tasks._encoder import ExportedEncoderTask
from export.verify import Run
from serving.answer_comparison import SMALLEST_SCALE, TOLERANCES, Path, differences, largest_number
from serving.errors import ExportError, first_line
from serving.manifests import ReferenceCheck
from serving.reporting import logger, plural
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Arrays, TextColumns
from serving.undecided import undecided_paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ROWS = 32
"""Number of labelled rows that are compared."""
BATCH = 16
"""Number of labelled rows in a batch."""
SHOWN = 3
"""Number of refused texts that a message names."""
RawTexts = tuple[str, ...]
Library = Callable[[RawTexts], object]
"""The library's answer to one row of raw texts."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A request row that is compared.

    Attributes:
        name: What is special about it, for messages.
        row: Its texts.
        labelled: Whether it is one of the user's rows.
        fills_model: Whether it has as many tokens as the model takes. Such a row takes much memory, and is not padded.
    """

    name: str
    row: RawTexts
    labelled: bool = False
    fills_model: bool = False


@dataclass(frozen=True, kw_only=True)
class ServedGraph:
    """A graph between the first and the last step of the ensemble.

    Attributes:
        task: The task, whose served half makes the inputs and the answers.
        run: The graph.
        encoder: The tokenizer as it runs inside Triton.
        max_length: Maximum tokens of a row.
    """

    task: ExportedEncoderTask
    run: Run
    encoder: TextEncoder
    max_length: int

    def answers(self, rows: Sequence[RawTexts]) -> tuple[Sequence[Any], Sequence[Collection[Path]]]:
        """Answer rows in one padded batch, in the client's form.

        Returns:
            The answers, and the paths in each that a difference within the tolerance decides.

        Raises:
            ValueError: A row is refused.
        """
        parameters, shown = self.task.served.sanitize_parameters(self.task.asked_options(self.max_length))
        served = self.task.served.with_options({**self.task.served.pipeline_defaults(), **parameters})
        features = served.preprocess([list(column) for column in zip(*rows, strict=True)], self.encoder)
        outputs = self.run(self.encoder.arrays(features.encodings))

        def formatted(arrays: Arrays) -> list[Any]:
            found = served.decoded_postprocess(arrays, features.origins, self.encoder.tokenizer)
            return [_plain(one) for one in served.add_inputs(served.format_answers(found, **shown), rows)]

        return undecided_paths(formatted, outputs, TOLERANCES["fp32"])


def require_equal_answers(
    graph: ServedGraph, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: TextColumns, options: dict[str, Any]
) -> ReferenceCheck:
    """Compare the answers to labelled rows and to unusual texts.

    Args:
        graph: The graph.
        model: The checkpoint's model, loaded for this purpose alone.
        tokenizer: The checkpoint's tokenizer, loaded for this purpose alone.
        rows: Columns of request rows.
        options: Options of the pipeline that the user chose for the checkpoint.

    Returns:
        What was compared, and the largest difference of two numbers.

    Raises:
        ExportError: The answers differ. The message names the text.
    """
    task = graph.task
    tokenizer.model_max_length = graph.max_length
    # a tokenizer may give inputs that the model does not take, such as token_type_ids for DistilBERT
    tokenizer.model_input_names = fed_inputs(tokenizer, model)
    library = task.library(model.eval(), tokenizer, max_length=graph.max_length, options=options)
    labelled = [
        Case(name=f"row {number}", row=row, labelled=True)
        for number, row in enumerate(islice(zip(*rows, strict=True), ROWS), start=1)
    ]
    largest = 0.0
    compared: set[str] = set()
    refused: dict[str, str] = {}
    for batch in _batches(labelled, edge_cases(graph, tokenizer, [case.row for case in labelled])):
        asked = [(case, *_expected(library, case)) for case in batch]
        refused |= {case.name: reason for case, _, reason in asked if reason}
        if not batch[0].labelled and batch[0].name in refused:
            continue
        wanted = [(case, answer) for case, answer, reason in asked if not reason]
        if wanted:
            largest = max(largest, _largest_difference(graph, wanted, task.library_name))
            compared |= {case.name for case, _ in wanted}
    reasons = "; ".join(f"{name} ({reason:.100})" for name, reason in [*refused.items()][:SHOWN])
    if all(case.name in refused for case in labelled):
        raise ExportError(
            f"{task.library_name} answers none of the rows to verify on: {reasons}",
            hint="try the checkpoint with the library first",
        )
    are = plural(len(compared), "text is", "texts are")
    logger.info(f"{len(compared)} {are} answered as by {task.library_name}, within {largest:.2g}")
    if refused:
        logger.info(f"{task.library_name} refuses {len(refused)} of the texts, so they are not compared: {reasons}")
    return ReferenceCheck(library=task.library_name, texts=len(compared), max_difference=largest)


def _batches(labelled: Sequence[Case], unusual: Sequence[Case]) -> list[Sequence[Case]]:
    """Divide the rows into batches. An unusual text shares one with a labelled row, so that one of them is padded.

    The longest come first: BigBird's model, once it was given a short text, computes other attention for long ones too.
    """
    shared = [[case] if case.fills_model else [case, labelled[0]] for case in unusual]
    return [*shared, *(labelled[start : start + BATCH] for start in range(0, len(labelled), BATCH))]


def edge_cases(graph: ServedGraph, tokenizer: PreTrainedTokenizerFast, rows: Sequence[RawTexts]) -> list[Case]:
    """Return rows with unusual texts, in each place of a row that holds plain text."""
    first, full = rows[0], f"a text of {graph.max_length} tokens"
    cases = []
    for place in range(graph.task.plain_texts):
        texts = [row[place] for row in rows]
        usual = next((text for text in texts if text.strip()), next(iter(graph.task.served.example.values())))
        unusual = {
            full: _long_text([usual, *texts], graph),
            "an empty text": "",
            "a text of all special tokens": " ".join(tokenizer.all_special_tokens),
            "a text with outer white space and line breaks": f" \n\t{usual}\n\n",
        }
        nth = "" if graph.task.plain_texts == 1 else f" as input {place + 1}"
        for name, text in unusual.items():
            fills_model = name == full
            if not fills_model or (graph.task.served.truncation and place in graph.task.truncated_texts):
                row = (*first[:place], graph.task.edge_text(text, usual), *first[place + 1 :])
                cases.append(Case(name=name + nth, row=row, fills_model=fills_model))
    return cases


def _long_text(texts: Sequence[str], graph: ServedGraph) -> str:
    """Join texts, again and again, until they fill the model."""
    whole = " ".join(texts)
    tokens = len(graph.encoder.plain_ids([whole])[0])
    while 0 < tokens <= graph.max_length:
        whole = " ".join([whole] * (1 + graph.max_length // tokens))
        tokens = len(graph.encoder.plain_ids([whole])[0])
    return whole


def _expected(library: Library, case: Case) -> tuple[object, str]:
    """Return the library's answer, and why it refuses the row, if it does.

    A pipeline raises what its tokenizer and its model raise: errors of any type, and panics of Rust code, which are no Exception.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about the library's own code
            return _plain(library(case.row)), ""
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        return None, f"{type(error).__name__}: {first_line(error)}"


def _largest_difference(graph: ServedGraph, wanted: Sequence[tuple[Case, Any]], library: str) -> float:
    """Compare one batch; return the largest difference of two numbers.

    Raises:
        ExportError: A difference is larger than the tolerance, or the served preprocessing refuses a row.
    """
    try:
        answers, undecided = graph.answers([case.row for case, _ in wanted])
    except ValueError as error:
        raise ExportError(f"{library} answers {_named(wanted[0][0])}, which would be refused when served: {error}") from error
    except ExportError as error:  # the graph itself fails, and with it every request in the batch
        raise ExportError(
            f"{library} answers {_named(wanted[0][0])}, where the exported graph fails: {error.message}",
            hint="such a checkpoint cannot be served",
        ) from error
    largest = 0.0
    for (case, expected), found, open_paths in zip(wanted, answers, undecided, strict=True):
        margin = TOLERANCES["fp32"] * max(largest_number(expected), SMALLEST_SCALE)
        for path, one, other in differences(expected, found, 0.0):
            if any(path[: len(known)] == known for known in open_paths):
                continue
            if not (isinstance(one, float) and isinstance(other, float) and abs(one - other) <= margin):
                raise ExportError(
                    f"the exported graph and {library} answer {_named(case)}, differently: "
                    f"{'/'.join(path) or 'the answer'} is {other!r:.80}, expected {one!r:.80}",
                    hint="such a checkpoint cannot be served with the answers that it gives in PyTorch"
                    if not case.fills_model
                    else "its answers may depend on the length of a row in a way that a graph cannot express: reduce --max-length",
                )
            largest = max(largest, abs(one - other))
    return largest


def _named(case: Case) -> str:
    return f"{case.name}, {' and '.join(f'{text:.100}' for text in map(repr, case.row))}"


def _plain(value: Any) -> Any:
    """Convert numpy's numbers to Python's, and tuples and arrays to lists."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
