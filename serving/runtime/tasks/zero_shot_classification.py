"""Zero-shot classification: a text and candidate labels → the labels, best first, and their scores.

The model does natural language inference (does one text follow from the other?). Each label is put into a hypothesis
("This example is sports."). How far it follows from the text is the label's score. Every pair of a text and a label is one model
row.

The answers are those of the pipeline of ``transformers``, including these rules:

* Of several labels, the scores are the softmax of their entailment logits. Of a single label, or with ``multi_label``, each score
  is the softmax of entailment against contradiction, without neutral.
* Entailment is the first name in the config's ``label2id`` that starts with "entail" in any case; without such a name, the last
  logit. Contradiction is the first logit, or the last one where entailment is the first.
* Of equal scores, the label given last comes first.
* Only the text is truncated where a pair is too long, never the hypothesis.

Differences: the server answers an empty text, which the pipeline and the client refuse. A hypothesis that leaves no room for the
text is refused (the pipeline gives the model more tokens than it accepts). Labels must be strings. A template contains ``{}`` or
``{0}`` once and nothing else in braces (the pipeline formats whatever it gets), and at most :data:`LONGEST_TEMPLATE` characters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from ..types import Arrays, Features, Integers, JsonValue, Origins, Setting, Tensor, Text, TextColumns
from ._candidates import first_rows, require_few, softmax_by_sample
from ._encoder import EncoderTask
from ._strings import json_column, read_strings, write_strings

if TYPE_CHECKING:
    from ..tokenization import TextEncoder

LONGEST_TEMPLATE = 1000
"""Maximum number of characters of a template: every label gets a copy."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassification(EncoderTask):
    """Serves zero-shot classification.

    Attributes:
        entailment: Position of the entailment logit.
        contradiction: Position of the contradiction logit.
        hypothesis_template: Sentence that a label is put into.
        multi_label: Whether several labels may be right, so that each is scored on its own.
    """

    pair: bool = True
    entailment: int
    contradiction: int
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False

    name: ClassVar[str] = "zero-shot-classification"
    options: ClassVar[Mapping[str, Setting]] = {
        **EncoderTask.options,
        "hypothesis_template": Setting(str, help="Sentence with {} where the label goes."),
        "multi_label": Setting(bool, help="Score each label on its own."),
    }
    carries_metadata: ClassVar[bool] = True
    fan_out: ClassVar[int] = 4
    text_keys: ClassVar[tuple[str, ...]] = ("text", "candidate_labels")
    positional: ClassVar[tuple[str, ...]] = ("sequences", "candidate_labels")
    ignores_unknown_options: ClassVar[bool] = True

    def inputs(self) -> tuple[Tensor, ...]:
        """Return ``TEXT`` and ``CANDIDATE_LABELS``, a JSON list."""
        return (Tensor("TEXT", "TYPE_STRING"), Tensor("CANDIDATE_LABELS", "TYPE_STRING"))

    def outputs(self) -> tuple[Tensor, ...]:
        """Return ``LABELS`` and ``SCORES``, JSON lists."""
        return (Tensor("LABELS", "TYPE_STRING"), Tensor("SCORES", "TYPE_STRING"))

    @property
    def example(self) -> dict[str, str]:
        """Return a review and three labels."""
        labels = ["film", "food", "sports"]
        return {"TEXT": "A warm, funny and thoroughly engaging film.", "CANDIDATE_LABELS": write_strings(labels)}

    def long_example(self, repeats: int) -> dict[str, str]:
        """Repeat the text alone."""
        example = self.example
        return example | {"TEXT": " ".join([example["TEXT"]] * repeats)}

    def check_options(self) -> None:
        """Refuse a template that has no single place for the label."""
        _split_template(self.hypothesis_template)

    def texts(self, columns: TextColumns) -> Sequence[Text]:
        """Return each text with each of its hypotheses."""
        return self._pairs(columns)[0]

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Make one model row per label; the label is its metadata."""
        pairs, labels, mapping = self._pairs(columns, most=encoder.most_rows)
        encodings = encoder.encode(pairs, truncation=self.truncation, strategy="only_first")
        return Features(encodings, Origins(mapping, [label.encode() for label in labels]))

    def _pairs(self, columns: TextColumns, *, most: int | None = None) -> tuple[list[Text], list[str], Integers]:
        """Pair each text with each of its labels as a hypothesis.

        Returns:
            The pairs, the label of each, and the sample mapping.

        Raises:
            ValueError: A row has no list of labels, or more than ``most``.
        """
        texts, lists = columns
        before, after = _split_template(self.hypothesis_template)
        read: dict[str, tuple[list[str], list[str]]] = {}  # most rows have the same candidates
        for given in lists:
            if given not in read:
                labels = read_strings(given, "CANDIDATE_LABELS")
                require_few(labels, "CANDIDATE_LABELS", most)
                read[given] = labels, [before + label + after for label in labels]
        pairs: list[Text] = [(text, hypothesis) for text, given in zip(texts, lists, strict=True) for hypothesis in read[given][1]]
        mapping = np.repeat(np.arange(len(texts)), [len(read[given][0]) for given in lists])
        return pairs, [label for given in lists for label in read[given][0]], mapping

    def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:
        """Compute the score of each label and sort the labels of each row by it."""
        logits, mapping = outputs["logits"], origins.sample_mapping
        firsts = first_rows(mapping)
        counts = np.diff(firsts, append=len(mapping))
        independent = np.full(len(mapping), True) if self.multi_label else (counts == 1)[mapping]
        against = logits[:, self.contradiction] - logits[:, self.entailment]
        with np.errstate(over="ignore"):  # 1 / (1 + inf) is the 0 that is meant
            own = 1 / (1 + np.exp(against))
        scores = np.where(independent, own, softmax_by_sample(logits[:, self.entailment], mapping))
        labels, ranked, shares = origins.metadata, [], []
        for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
            row = scores[first : first + count]
            order = row.argsort()[::-1]
            ranked.append([labels[first + place].decode() for place in order.tolist()])
            shares.append(row[order].tolist())
        return {"LABELS": json_column(ranked), "SCORES": json_column(shares)}

    # -- the client -----------------------------------------------------------------------------------------------------------

    def parse_call(self, arguments: tuple[object, ...], given: Mapping[str, object]) -> tuple[object, dict[str, object]]:
        """Take ``pipe(sequences, candidate_labels)``, by position or by name, or rows that name their labels themselves."""
        options = dict(given)
        names = ("sequences", "candidate_labels")
        found = dict(zip(names, arguments, strict=False))
        if len(arguments) > len(names) or found.keys() & options.keys():
            raise ValueError("give sequences and candidate_labels, each once")
        found |= {name: options.pop(name) for name in names if name in options}
        if "sequences" not in found:
            raise TypeError("give sequences and candidate_labels, each once")
        sequences = found["sequences"]
        if "candidate_labels" not in found:
            return sequences, options
        labels = found["candidate_labels"]
        if isinstance(sequences, list | tuple):
            return [_with_labels(row, labels) for row in sequences], options
        return _with_labels(sequences, labels), options

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take dicts with ``text`` and ``candidate_labels``."""
        return [self._parse_row(row) for row in (inputs if isinstance(inputs, list | tuple) else [inputs])]

    @staticmethod
    def _parse_row(row: object) -> tuple[str, ...]:
        match row:
            case {"text": str(text), "candidate_labels": labels, **rest} if not rest:
                if isinstance(labels, str):
                    labels = [label.strip() for label in labels.split(",") if label.strip()]
                elif isinstance(labels, np.ndarray):
                    labels = labels.tolist()
                try:
                    written = write_strings(labels)
                except TypeError as error:
                    raise TypeError(f"candidate_labels {error}, or a string of them with commas between") from None
                if not labels:
                    raise ValueError("one candidate label is needed at least")
                return text, written
        wanted = "a string (with candidate_labels=[…] beside it) or {'text': …, 'candidate_labels': […]}"
        raise TypeError(f"each row must be {wanted}, not {row!r:.80}")

    def check_rows(self, rows: Sequence[tuple[str, ...]]) -> None:
        """Refuse empty texts, as the pipeline does."""
        if not all(text for text, _ in rows):
            raise ValueError("a text is empty")

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Take ``multi_class``, the older name of ``multi_label``, which wins where both are given, as in the pipeline."""
        options = dict(given)
        if options.pop("multi_class", None) is not None:
            options["multi_label"] = given["multi_class"]
        if not isinstance(options.get("hypothesis_template", ""), str):
            raise AttributeError(f"hypothesis_template must be a string, not {given['hypothesis_template']!r:.80}")
        return super().sanitize_parameters(options)

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:  # noqa: ARG002
        """Return ``{"labels", "scores"}`` per row. :meth:`add_inputs` puts the text in front."""
        rows = zip(answers["LABELS"][:, 0], answers["SCORES"][:, 0], strict=True)
        return [{"labels": json.loads(labels), "scores": json.loads(scores)} for labels, scores in rows]

    def add_inputs(
        self,
        answers: Sequence[object],
        rows: Sequence[tuple[str, ...]],
        **options: object,  # noqa: ARG002
    ) -> Sequence[object]:
        """Return ``{"sequence", "labels", "scores"}`` per row."""
        found = cast("Sequence[dict[str, object]]", answers)
        return [{"sequence": text} | answer for answer, (text, _) in zip(found, rows, strict=True)]


def _with_labels(row: object, labels: object) -> dict[str, object]:
    if isinstance(row, Mapping):
        if "candidate_labels" in row:
            raise TypeError(f"candidate_labels are given twice, in the row and beside it: {row!r:.80}")
        return {**row, "candidate_labels": labels}
    return {"text": row, "candidate_labels": labels}


def _split_template(template: str) -> tuple[str, str]:
    """Split a template into the text before the label and the text after it.

    This does not use ``str.format``: a template comes from a client, and could read attributes or ask for a million spaces.

    Raises:
        ValueError: There is no place for the label or more than one, there is another field, or the template is too long.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise ValueError(f"hypothesis_template has {len(template)} characters, at most {LONGEST_TEMPLATE} are taken")
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"hypothesis_template {template[:80]!r} cannot be read: {error}") from None
    fields = [(place, part[1:]) for place, part in enumerate(parts) if part[1] is not None]
    if len(fields) != 1 or fields[0][1] not in (("", "", None), ("0", "", None)):
        raise ValueError(
            f"hypothesis_template must contain {{}} where the label goes, once, and no other braces: {template[:80]!r}"
        )
    literals = [part[0] for part in parts]
    end = fields[0][0] + 1
    return "".join(literals[:end]), "".join(literals[end:])


TASK = ZeroShotClassification
