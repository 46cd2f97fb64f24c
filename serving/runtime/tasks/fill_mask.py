"""Fill-mask: a text with masked tokens → the tokens most likely to stand there.

As ``transformers.pipeline("fill-mask")``, quirks included:

* a text of one mask gives a list of answers, one of several masks a list of such lists, in the order of the masks. Each mask is
  filled as if the others stayed masked, and the sequences of such a text show special tokens (``[CLS]`` and the like);
* a list of one text gives what the text alone gives;
* a target that is no token of the vocabulary stands for the first token of its own text; one that has none is passed over.

Unlike the pipeline, which fails on a text longer than the model takes unless told to truncate, such a text is cut here; where no
mask is left then, it is refused as one without a mask. A text may have :data:`MOST_MASKS` masks at most: every row of a batch costs
as much as the one with the most; and it gets :data:`MOST_ANSWERS` answers at most.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ._labels import IGNORED
from ._masking import Masking
from ._masks import NUMBERS, Mask, Row, best_tokens, cleaned_up, log_sum, read_note, top, with_notes
from ._strings import read_option
from .base import Arrays, Columns, Features, Option, Options, Origins, Task, Tensor

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Encoding, Tokenizer

    from ..tokenization import TextEncoder

MOST_MASKS = 16
"""Masks in one text."""
MOST_ANSWERS = 10_000
"""Answers to one text, of all its masks together: each holds the whole text."""
CLOSE = 1e-3
"""Two tokens whose logits are nearer to each other than this are a close call."""
BEST = 5
"""So many best tokens the figures beside accuracy are about."""
JUDGED_ROWS = 2000
"""Rows to be judged on, at most: the logits of the whole vocabulary are kept for each."""


@dataclass(frozen=True, kw_only=True)
class FillMask(Task):
    """Args:
    mask_token: as it stands in texts.
    mask_token_id, pad_token_id: of the checkpoint's tokenizer.
    special_ids: tokens that are never masked in training.
    clean_up: decoding takes out the spaces in front of punctuation, as the checkpoint's tokenizer says.
    vocabulary: how many tokens the model knows.
    top_k: answers for each mask.
    only: default of the option ``targets``: only these tokens are scored; a JSON list of strings, or strings with commas
        between; empty: all tokens are.
    """

    mask_token: str = ""
    mask_token_id: int = -1
    pad_token_id: int = -1
    special_ids: tuple[int, ...] = ()
    clean_up: bool = False
    vocabulary: int = 0
    top_k: int = 5
    only: str = ""

    name: ClassVar[str] = "fill-mask"
    auto_model: ClassVar[str] = "AutoModelForMaskedLM"
    tail: ClassVar[str] = "masked"
    options: ClassVar[Mapping[str, Option]] = {**Task.options, "top_k": Option(int, minimum=0), "targets": Option(str)}
    carries_notes: ClassVar[bool] = True
    needs_tokenizer: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "label": None}
    reads_digits: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool) -> Self:
        if pair:
            raise ValueError("it fills masks of single texts, not of pairs")
        return cls(vocabulary=int(config.get("vocab_size") or 0))

    @classmethod
    def from_labels(cls, labels: Sequence[Any], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003 - tokens are the labels
        if pair:
            raise ValueError("fill-mask learns from single texts, not from pairs")
        return cls()

    def with_tokenizer(self, tokenizer: Any) -> Self:
        if tokenizer.mask_token_id is None:
            raise ValueError("its tokenizer has no mask token")
        bound = replace(
            self,
            mask_token=tokenizer.mask_token,
            mask_token_id=tokenizer.mask_token_id,
            pad_token_id=-1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
            clean_up=bool(tokenizer.clean_up_tokenization_spaces),
            vocabulary=self.vocabulary or len(tokenizer),
        )
        bound._require_equal_words(tokenizer)
        return bound

    def _require_equal_words(self, tokenizer: Any) -> None:
        """Check on a sample of the vocabulary that ``tokenizer.json`` alone decodes as the checkpoint's own tokenizer does."""
        sample = list(range(0, len(tokenizer), max(1, len(tokenizer) // 500)))
        for start in range(0, len(sample), 10):
            ids = sample[start : start + 10]
            for skip in (True, False):
                ours = self._decoded(tokenizer.backend_tokenizer, [ids], skip_special_tokens=skip)[0]
                if ours != tokenizer.decode(ids, skip_special_tokens=skip):
                    raise ValueError(f"its tokenizer decodes tokens {ids} by Python code of its own, which cannot be served")

    # -- rows ------------------------------------------------------------------------------------------------------------------

    @classmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """The label is the masked token, or its number; none: masks are made of the plain text."""
        if label is None or label == "":
            return texts, None
        if type(label) in (str, int):
            return texts, label
        raise ValueError(f"the label holds {type(label).__name__}, not a token or its number")

    def reference(self, label: Any) -> Any:
        """A token is not yet its number: that takes the tokenizer (see :meth:`labelled`)."""
        return label

    def is_reference(self, value: Any) -> bool:
        return type(value) is int and 0 <= value < (self.vocabulary or math.inf)

    def labelled(
        self, texts: Columns, references: Sequence[Any], encoder: TextEncoder, *, training: bool
    ) -> tuple[Columns, Sequence[Any]]:
        """Rows to learn from stay as they are where they have no label: their masks are drawn anew each time (:meth:`altered`).
        Those to be judged on get one mask each, always the same one, and what stood there as their label; texts in which no
        token can be masked without changing others are left out, and so are those beyond :data:`JUDGED_ROWS`."""
        rows = list(zip(texts[0], references, strict=True))
        if not training and len(rows) > JUDGED_ROWS:
            chosen = np.random.default_rng(0).choice(len(rows), JUDGED_ROWS, replace=False)
            rows = [rows[index] for index in sorted(chosen.tolist())]
        encodings = encoder.encode([text for text, _ in rows], offsets=True)
        made: list[tuple[str, Any] | None] = [None] * len(rows)
        plain = {}
        for index, ((text, label), encoding) in enumerate(zip(rows, encodings, strict=True)):
            if label is not None:
                made[index] = text, self._token_of(label, text, encoding, encoder.tokenizer)
            elif training:
                made[index] = (text, None) if self._masking.maskable(encoding) else None
            elif self.mask_token_id not in encoding.ids:
                plain[index] = (text, encoding)
        for index, (text, token) in self._masking.one_each(plain, encoder).items():
            made[index] = text, token
        kept = [row for row in made if row is not None]
        return ([text for text, _ in kept],), [token for _, token in kept]

    def _token_of(self, label: str | int, text: str, encoding: Encoding, tokenizer: Tokenizer) -> int:
        """The label of a text that has its mask already, as a number."""
        masks = encoding.ids.count(self.mask_token_id)
        if masks != 1:
            raise ValueError(f"a labelled text needs one {self.mask_token}, this has {masks}: {text!r:.80}")
        token = label if isinstance(label, int) else _target(label, tokenizer)
        if token is None or not self.is_reference(token):
            raise ValueError(f"label {label!r} is no token of the vocabulary: {text!r:.80}")
        return token

    # -- the ensemble ----------------------------------------------------------------------------------------------------------

    def outputs(self) -> tuple[Tensor, ...]:
        return (Tensor("PREDICTIONS", "TYPE_STRING"),)

    @property
    def example(self) -> dict[str, str]:
        return {"TEXT": f"The capital of France is {self.mask_token}."}

    def long_example(self, repeats: int) -> dict[str, str]:
        """With a mask at either end: one of them is left, whichever side is cut."""
        return {"TEXT": " ".join([self.mask_token, *["The capital of France."] * repeats, self.mask_token])}

    def request_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        values = super().request_options({"targets": self.only, **given})
        if values["top_k"] > self.vocabulary > 0 and not values["targets"]:
            raise ValueError(f"option top_k must be {self.vocabulary} or less, the model knows no more tokens")
        return values

    def features(self, columns: Columns, encoder: TextEncoder, options: Options) -> Features:
        targets = self._target_ids(options["targets"], encoder.tokenizer)
        encodings = encoder.encode(columns[0], truncation=options["truncation"])
        rows = [encoding.ids for encoding in encodings]
        for row, (ids, encoding) in enumerate(zip(rows, encodings, strict=True)):
            masks = ids.count(self.mask_token_id)
            if masks == 0:
                within = f" within the {encoder.max_length} tokens the model takes" if encoding.overflowing else ""
                raise ValueError(f"row {row}: no mask token ({self.mask_token}) found{within}")
            if masks > MOST_MASKS:
                raise ValueError(f"row {row}: {masks} mask tokens ({self.mask_token}), at most {MOST_MASKS} can be filled at once")
            if masks * options["top_k"] > MOST_ANSWERS and not targets:
                raise ValueError(f"row {row}: top_k {options['top_k']} for {masks} masks; {MOST_ANSWERS} answers are given at most")
        return with_notes(encodings, rows, targets)

    def training_features(self, texts: Columns, encoder: TextEncoder) -> Features:
        """Of plain texts too: their masks come later."""
        encodings = encoder.encode(texts[0])
        return with_notes(encodings, [encoding.ids for encoding in encodings], [])

    def _target_ids(self, targets: str, tokenizer: Tokenizer) -> list[int]:
        """In the order in which the pipeline has them."""
        if not targets:
            return []
        found = [
            token
            for token in (_target(target, tokenizer) for target in read_option(targets, "targets") if target)
            if token is not None
        ]
        if not found:
            raise ValueError("option targets names no token of the vocabulary")
        if strange := [token for token in found if token >= self.vocabulary]:
            raise ValueError(f"option targets: the model does not know token {tokenizer.id_to_token(strange[0])!r}")
        return list(set(found))

    def reduced(self, heads: Arrays, feed: Arrays) -> Arrays:
        """Logits of a row's masks in their order, then of its other positions from the first on: as many of each row as the one
        with the most masks has, and one at least."""
        others = feed["input_ids"] != self.mask_token_id
        kept = max(1, int((~others).sum(axis=1).max()))
        positions = np.argsort(others, axis=1, kind="stable")[:, :kept]
        return {"logits": np.take_along_axis(heads["logits"], positions[:, :, None], axis=1)}

    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:
        """Without ``token_str`` and ``sequence``: those take the tokenizer."""
        return _tensors([[_plain(mask) for mask in row.masks] for row in self._filled(outputs, origins, options)])

    def worded_answers(self, outputs: Arrays, origins: Origins, options: Options, tokenizer: Tokenizer | None) -> Arrays:
        assert tokenizer is not None
        rows = self._filled(outputs, origins, options)
        sequences = self._sequences(rows, tokenizer)
        self._learn_words(rows, tokenizer)
        return _tensors(
            [
                [
                    [
                        {"score": score, "token": token, "token_str": self._words[token], "sequence": next(sequences)}
                        for score, token in zip(mask.scores, mask.tokens, strict=True)
                    ]
                    for mask in row.masks
                ]
                for row in rows
            ]
        )

    def _filled(self, outputs: Arrays, origins: Origins, options: Options) -> list[Row]:
        """The best tokens of every mask of every row."""
        notes = [read_note(note) for note in origins.notes]
        positions = [np.flatnonzero(ids == self.mask_token_id).tolist() for _, ids in notes]
        counts = np.array([len(each) for each in positions])
        logits = outputs["logits"]
        picked = logits[:, 0] if (counts == 1).all() else logits[np.arange(logits.shape[1]) < counts[:, None]]
        targets = notes[0][0] if notes else np.empty(0, dtype=NUMBERS)
        scores, tokens = best_tokens(picked, options["top_k"], targets)
        masks = iter([Mask(*pair) for pair in zip(scores.tolist(), tokens.tolist(), strict=True)])
        return [Row(ids.tolist(), each, [next(masks) for _ in each]) for (_, ids), each in zip(notes, positions, strict=True)]

    def _sequences(self, rows: Sequence[Row], tokenizer: Tokenizer) -> Any:
        """An iterator over the texts with each token in its mask's place: all rows', all masks', all tokens'."""
        ids: dict[bool, list[list[int]]] = {True: [], False: []}
        for row in rows:
            ids[len(row.masks) == 1] += row.sequences(self.pad_token_id)
        texts = {alone: iter(self._decoded(tokenizer, each, skip_special_tokens=alone)) for alone, each in ids.items()}
        return (next(texts[len(row.masks) == 1]) for row in rows for mask in row.masks for _ in mask.tokens)

    def _learn_words(self, rows: Sequence[Row], tokenizer: Tokenizer) -> None:
        new = list({token for row in rows for mask in row.masks for token in mask.tokens} - self._words.keys())
        self._words.update(zip(new, self._decoded(tokenizer, [[token] for token in new], skip_special_tokens=False), strict=True))

    def _decoded(self, tokenizer: Tokenizer, ids: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        texts: list[str] = tokenizer.decode_batch(ids, skip_special_tokens=skip_special_tokens) if ids else []
        return [cleaned_up(text) for text in texts] if self.clean_up else texts

    @cached_property
    def _words(self) -> dict[int, str]:
        """Text of each token that was ever an answer."""
        return {}

    @cached_property
    def _masking(self) -> Masking:
        return Masking(self.mask_token, self.mask_token_id, frozenset(self.special_ids))

    # -- the client ------------------------------------------------------------------------------------------------------------

    def call(self, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """``targets`` is one string or a list of them there, and truncation is asked for by ``tokenizer_kwargs``."""
        inputs, options = super().call(arguments, given)
        if isinstance(targets := options.get("targets"), str):
            options["targets"] = _written_targets([targets])
        elif targets is not None:
            if not isinstance(targets, list | tuple) or not all(isinstance(target, str) for target in targets):
                raise TypeError(f"targets must be a string or a list of them, not {targets!r:.80}")
            options["targets"] = _written_targets(targets)
        kwargs = options.pop("tokenizer_kwargs", None) or {}
        if set(kwargs) - {"truncation"}:
            raise TypeError(f"tokenizer_kwargs may hold truncation only, not {', '.join(sorted(set(kwargs) - {'truncation'}))}")
        return inputs, {**kwargs, **options}

    def ask_pipeline(self, pipeline: Any, rows: Sequence[Sequence[str]], *, max_length: int) -> list[Any]:
        cut = {"truncation": True, "max_length": max_length}
        found: list[Any] = pipeline([text for (text,) in rows], batch_size=len(rows), tokenizer_kwargs=cut)
        return [found] if len(rows) == 1 else found  # it unwraps a list of one

    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """A list of ``{"score", "token", "token_str", "sequence"}`` per row, best first; of several masks a list of such lists."""
        self.refuse_options(options)
        return [json.loads(row) for row in answers["PREDICTIONS"][:, 0]]

    def pipeline_result(self, inputs: Any, answers: list[Any], options: Mapping[str, Any]) -> Any:
        """As the pipeline does it: a list of one text gives what the text gives."""
        return answers[0] if len(answers) == 1 else super().pipeline_result(inputs, answers, options)

    # -- training and judging --------------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        return "accuracy"

    @property
    def main_metric(self) -> str:
        return "accuracy"

    def targets_of(self, encoding: Encoding, reference: int | None) -> list[int]:
        """Targets of a row: the right token where its mask stands. A row without a reference has none yet."""
        if reference is None:
            return [IGNORED] * len(encoding)
        return [reference if token == self.mask_token_id else IGNORED for token in encoding.ids]

    def altered(self, batch: Arrays, generator: np.random.Generator) -> Arrays:
        return self._masking.drawn(batch, generator, vocabulary=self.vocabulary)

    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:
        pairs = zip(features.encodings, references, strict=True)
        return {"labels": [self.targets_of(encoding, reference) for encoding, reference in pairs]}

    def predictions(self, answers: Arrays) -> list[Any]:
        return [row[0][0]["token"] for row in _rows(answers)]

    def figures(
        self,
        outputs: Arrays,
        original: Arrays,
        origins: Origins,  # noqa: ARG002 - rows to be judged on have one mask each
        references: Sequence[Any],
    ) -> dict[str, float]:
        """``perplexity``: e to the mean surprise at the right token. ``accuracy_at_5``: share of rows whose right token is among
        the best. ``agreement_at_5``: share of the original's best tokens that are among the best here."""
        losses, hits, shared = [], [], []
        for row, theirs, reference in zip(outputs["logits"], original["logits"], references, strict=True):
            best = top(row[:1], BEST)[0]
            losses.append(log_sum(row[:1])[0] - row[0, reference])
            hits.append(reference in best)
            shared.append(np.isin(best, top(theirs[:1], BEST)[0]).mean())
        return {
            "perplexity": float(np.exp(np.mean(losses, dtype=np.float64))),
            "accuracy_at_5": float(np.mean(hits)),
            "agreement_at_5": float(np.mean(shared)),
        }

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """1 where the best token is the same."""
        pairs = zip(_rows(answers), _rows(original), strict=True)
        return np.array([_firsts(ours) == _firsts(theirs) for ours, theirs in pairs], dtype=np.float64)

    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:
        close = math.exp(-CLOSE)
        return np.array(
            [any(mask[1]["score"] >= mask[0]["score"] * close for mask in row if len(mask) > 1) for row in _rows(original)],
            dtype=np.bool_,
        )


def _written_targets(targets: Sequence[str]) -> str:
    return json.dumps(list(targets), ensure_ascii=False)


def _target(target: str, tokenizer: Tokenizer) -> int | None:
    """The token that ``target`` is, else the first of those it is made of, if any."""
    token: int | None = tokenizer.token_to_id(target)
    if token is not None:
        return token
    ids = tokenizer.encode(target, add_special_tokens=False).ids
    first = -1 if (tokenizer.truncation or {}).get("direction") == "left" else 0  # what is left of it where it is cut to one token
    return ids[first] if ids else None


def _plain(mask: Mask) -> list[dict[str, Any]]:
    return [{"score": score, "token": token} for score, token in zip(mask.scores, mask.tokens, strict=True)]


def _tensors(rows: Sequence[list[list[dict[str, Any]]]]) -> Arrays:
    """Answers by row and mask → the tensor: those of a single mask without the list around them."""
    predictions = np.empty((len(rows), 1), dtype=np.object_)
    predictions[:, 0] = [json.dumps(row[0] if len(row) == 1 else row, ensure_ascii=False).encode() for row in rows]
    return {"PREDICTIONS": predictions}


def _rows(answers: Arrays) -> list[list[list[dict[str, Any]]]]:
    """Inverse of :func:`_tensors`."""
    rows = [json.loads(row) for row in answers["PREDICTIONS"][:, 0]]
    return [row if row and isinstance(row[0], list) else [row] for row in rows]


def _firsts(row: list[list[dict[str, Any]]]) -> list[int]:
    return [mask[0]["token"] for mask in row]


TASK = FillMask
