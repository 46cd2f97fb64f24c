"""Feature extraction: a text → its embedding, one vector of fixed length. The cosine of two embeddings measures similarity.

``transformers.pipeline("feature-extraction")`` gives the vectors of all tokens, ``[1, tokens, hidden]``. Here they are pooled
into one vector inside the graph, and only that one travels. The embedding is the pooled output of the pipeline (with
``truncation=True`` and the same length), and what ``SentenceTransformer.encode`` of the library sentence-transformers gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from ..types import Arrays, Features, JsonValue, Origins, Setting, Tensor, TextColumns
from ._tokenizer_options import TokenizerOptionsTask

if TYPE_CHECKING:
    from ..tokenization import TextEncoder

POOLED = "sentence_embedding"
"""Output of the served graph, FP32 ``[rows, dims]``: pooled, never normalized, so that a request may have it either way."""
TINY = 1e-12
"""Smallest norm that a vector is divided by, as in torch's ``normalize``."""


@dataclass(frozen=True, kw_only=True)
class FeatureExtraction(TokenizerOptionsTask):
    """Serves embeddings.

    Attributes:
        dims: Numbers in an embedding, as the graph gives it.
        normalize: Scale embeddings to norm 1, so that a dot product is their cosine.
        truncate_dim: Numbers of an embedding to keep (for Matryoshka models). The shape of the
            answer stays; the other numbers are 0, which changes no cosine and no distance. None: all.
        prompt: Text put in front of every text.
        strip: Remove white space around the texts, with their prompt.
        lower_case: Lower-case the texts first.
    """

    dims: int = 0
    normalize: bool = False
    truncate_dim: int | None = None
    prompt: str = ""
    strip: bool = False
    lower_case: bool = False

    name: ClassVar[str] = "feature-extraction"
    model_outputs: ClassVar[tuple[str, ...]] = (POOLED,)
    options: ClassVar[Mapping[str, Setting]] = {
        **TokenizerOptionsTask.options,
        "normalize": Setting(bool, help="Scale embeddings to norm 1."),
        "truncate_dim": Setting(int, minimum=1, help="Numbers of an embedding to keep; the others become 0."),
        "prompt": Setting(str, help="Text put in front of every text."),
    }
    presentation_options: ClassVar[frozenset[str]] = frozenset({"truncate_dim"})
    client_options: ClassVar[tuple[str, ...]] = ("return_tensors",)
    ignores_unknown_options: ClassVar[bool] = True
    tokenizer_kwargs: ClassVar[str | None] = "tokenize_kwargs"
    columns: ClassVar[Mapping[str, str | None]] = {"text": "sentence1", "text_pair": "sentence2"}

    def outputs(self) -> tuple[Tensor, ...]:
        """Return ``EMBEDDING``."""
        return (Tensor("EMBEDDING", "TYPE_FP32", (self.dims,)),)

    @property
    def example(self) -> dict[str, str]:
        """Return a short review."""
        return {"TEXT": "A warm, funny and thoroughly engaging film."}

    def check_options(self) -> None:
        """Refuse a ``truncate_dim`` larger than the embedding."""
        if self.truncate_dim is not None and self.truncate_dim > self.dims:
            raise ValueError(f"option truncate_dim must be {self.dims} or less, not {self.truncate_dim}")

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Tokenize the texts behind the prompt."""
        texts: Sequence[str] = columns[0]
        if self.prompt:
            texts = [self.prompt + text for text in texts]
        if self.strip:
            texts = [text.strip() for text in texts]
        if self.lower_case:
            texts = [text.lower() for text in texts]
        return super().preprocess([texts], encoder)

    def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:  # noqa: ARG002 - one model row each
        """Truncate and normalize the pooled vectors as asked."""
        embeddings = outputs[POOLED]
        if self.truncate_dim not in (None, self.dims):
            embeddings = embeddings.copy()
            embeddings[:, self.truncate_dim :] = 0
        return {"EMBEDDING": unit(embeddings) if self.normalize else embeddings}

    # -- the client -----------------------------------------------------------------------------------------------------------

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Refuse ``return_tensors`` of other kinds: the pipeline does not know them either."""
        as_arrays = given.get("return_tensors")
        if not isinstance(as_arrays, bool | None):
            raise TypeError(f"return_tensors must be true (arrays of numpy) or false (lists), not {as_arrays!r:.80}")
        return super().sanitize_parameters(given)

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:
        """Return a list of ``dims`` floats per row, or a float32 array with ``return_tensors=True``.

        The pipeline gives a torch tensor there. The client does not need torch: ``torch.from_numpy`` makes one. With
        ``truncate_dim`` only that many numbers.
        """
        as_arrays = options.get("return_tensors", False)
        embeddings = answers["EMBEDDING"][:, : cast("int | None", options.get("truncate_dim"))]
        return list(embeddings) if as_arrays else cast("list[object]", embeddings.tolist())

    def format_result(self, inputs: object, answers: Sequence[object], options: Mapping[str, object]) -> object:
        """Return one array ``[rows, dims]`` for a list with ``return_tensors=True``.

        The pipeline gives a list of tensors, because its own differ in length.
        """
        if options.get("return_tensors") and answers and isinstance(inputs, list | tuple):
            return np.stack(cast("Sequence[np.ndarray]", answers))  # type: ignore[type-arg]
        return super().format_result(inputs, answers, options)


def unit(rows: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Scale rows to norm 1. A row of zeros stays.

    Args:
        rows: Floating point, ``[rows, dims]``.
    """
    return cast("np.ndarray", rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), TINY))  # type: ignore[type-arg]


TASK = FeatureExtraction
