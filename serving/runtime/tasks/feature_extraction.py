"""Feature extraction: a text → its embedding, one vector of fixed length whose cosine with another's says how alike they are.

``transformers.pipeline("feature-extraction")`` gives the vectors of all tokens, ``[1, tokens, hidden]``. Here they are pooled into
one inside the graph, and that one travels: the embedding is that pooling of the pipeline's output (with ``truncation=True`` and the
length that rows are cut at), and what ``SentenceTransformer.encode`` of the library sentence-transformers gives. How tokens are
pooled, whether the result is normalised, where rows are cut and what is put in front of them is read from the files that library
writes beside a checkpoint; a checkpoint without them gets what it does then: the mean of the tokens, not normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from .base import Arrays, Columns, Features, Option, Options, Origins, Task, Tensor

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from ..tokenization import TextEncoder

POOLED = "sentence_embedding"
"""Output of the served graph, FP32 ``[rows, dims]``: pooled and cut to ``truncate_dim``, never normalised, so that requests may
have it either way."""
MEAN, CLS, MAX, LAST = "mean", "cls", "max", "last"
POOLINGS = (MEAN, CLS, MAX, LAST)
MODULES, LIBRARY_FILE = "modules.json", "config_sentence_transformers.json"
TRANSFORMER_FILE, TRANSFORMER_FILES = "sentence_bert_config.json", "sentence_*_config.json"
POOLING_KEYS = {
    "pooling_mode_mean_tokens": MEAN,
    "pooling_mode_cls_token": CLS,
    "pooling_mode_max_tokens": MAX,
    "pooling_mode_lasttoken": LAST,
}
"""How a pooling module's file says what it does; newer ones say ``pooling_mode``."""
HIDDEN_KEYS = ("hidden_size", "dim", "n_embd", "d_model")
"""What the length of a token's vector is called in ``config.json``, by architecture."""
FAR = 1e9
"""Taken off the values of padding, so that none of them is a maximum."""
TINY = 1e-12
"""Least length that a vector is divided by, as in torch's ``normalize``."""
SHARPNESS = 20.0
"""What cosines are multiplied by in the loss, as in CoSENT."""
SAME = 1e-4
"""An embedding whose distance to the original's is this share of the usual one between texts is the same."""


@dataclass(frozen=True, kw_only=True)
class FeatureExtraction(Task):
    """Args:
    hidden: length of a token's vector.
    pooling: one of :data:`POOLINGS`: the mean of the row's tokens, the first, each number's largest, or the last.
    normalize: embeddings get length 1, so that a dot product is their cosine.
    truncate_dim: only so many numbers of an embedding are kept (of models trained for that, such as Matryoshka's). A request may
        ask for fewer still: the shape of its answer stays, the others are 0, which changes no cosine and no distance.
    prompt: put in front of every text.
    lower_case: texts are lower-cased first.
    """

    hidden: int = 0
    pooling: str = MEAN
    normalize: bool = False
    truncate_dim: int | None = None
    prompt: str = ""
    lower_case: bool = False

    name: ClassVar[str] = "feature-extraction"
    auto_model: ClassVar[str] = "AutoModel"
    heads: ClassVar[tuple[str, ...]] = ("last_hidden_state",)
    outputs_read: ClassVar[tuple[str, ...]] = (POOLED,)
    tail: ClassVar[str] = "pooled"
    own_loss: ClassVar[bool] = True
    options: ClassVar[Mapping[str, Option]] = {
        **Task.options,
        "normalize": Option(bool),
        "truncate_dim": Option(int, minimum=1),
        "prompt": Option(str),
    }
    shaping: ClassVar[frozenset[str]] = frozenset({"truncate_dim"})
    setup: ClassVar[Mapping[str, Option]] = {"pooling": Option(str, choices=POOLINGS), "lower_case": Option(bool)}
    checkpoint_files: ClassVar[tuple[str, ...]] = (MODULES, TRANSFORMER_FILES, LIBRARY_FILE, "*/config.json")
    columns: ClassVar[Mapping[str, str | None]] = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}

    def __post_init__(self) -> None:
        if self.truncate_dim is not None and self.hidden and self.truncate_dim > self.hidden:
            raise ValueError(f"truncate_dim is {self.truncate_dim}, but its embeddings have {self.hidden} numbers")

    @property
    def dims(self) -> int:
        """Numbers in an embedding."""
        return self.truncate_dim or self.hidden

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool = False) -> Self:  # noqa: ARG003 - texts are embedded one by one
        return cls(hidden=_hidden(config))

    @classmethod
    def from_labels(cls, labels: Sequence[Any], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003
        if len(set(labels)) < 2:
            raise ValueError(f"every pair has the score {labels[0]!r}: there is nothing to learn")
        return cls()

    @classmethod
    def checkpoint_settings(cls, config: Mapping[str, Any], files: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"hidden": _hidden(config), "lower_case": bool(_transformer_file(files).get("do_lower_case"))}
        if MODULES in files:
            kinds = _modules(files)
            found |= {"pooling": chosen.get("pooling") or _pooling(files), "normalize": "Normalize" in kinds}
        library = files.get(LIBRARY_FILE, {})
        if library.get("truncate_dim") is not None:
            found["truncate_dim"] = cls.options["truncate_dim"].check("truncate_dim", library["truncate_dim"])
        if name := library.get("default_prompt_name"):
            prompts = library.get("prompts") or {}
            if name not in prompts:
                raise ValueError(f"{LIBRARY_FILE} has no prompt {name!r}")
            found["prompt"] = prompts[name]
        return found | dict(chosen)

    @classmethod
    def checkpoint_length(cls, files: Mapping[str, Any]) -> int | None:
        length = _transformer_file(files).get("max_seq_length")
        return length if isinstance(length, int) and length > 0 else None

    def files_written(self, max_length: int) -> dict[str, Any]:
        """As sentence-transformers writes and reads them."""
        kinds = ["Transformer", "Pooling", *(["Normalize"] if self.normalize else [])]
        paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds[1:], start=1))]
        prompts = {"prompts": {"default": self.prompt}, "default_prompt_name": "default"} if self.prompt else {}
        return {
            MODULES: [
                {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
            ],
            f"{paths[1]}/config.json": {"word_embedding_dimension": self.hidden}
            | {key: pooling == self.pooling for key, pooling in POOLING_KEYS.items()},
            TRANSFORMER_FILE: {"max_seq_length": max_length, "do_lower_case": self.lower_case},
            LIBRARY_FILE: {"truncate_dim": self.truncate_dim, "similarity_fn_name": "cosine", **prompts},
        }

    @classmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """The label says how alike two texts are, on any scale: only which pairs are more alike than others counts."""
        try:
            score = float(label) if type(label) in (str, int, float) else float("nan")
        except ValueError:
            score = float("nan")
        if not isfinite(score):
            raise ValueError(f"the score is {label!r}, not a number")
        return texts, score

    def reference(self, label: Any) -> Any:
        return float(label)

    def is_reference(self, value: Any) -> bool:
        return isinstance(value, float) and isfinite(value)

    @property
    def text_columns(self) -> int:
        """The two texts of a pair; a request has one."""
        return 2

    def requests(self, columns: Columns) -> Columns:
        """The first texts of all pairs, then the second ones."""
        return [[text for column in columns for text in column]]

    def outputs(self) -> tuple[Tensor, ...]:
        return (Tensor("EMBEDDING", "TYPE_FP32", (self.dims,)),)

    @property
    def example(self) -> dict[str, str]:
        return {"TEXT": "A warm, funny and thoroughly engaging film."}

    def request_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        options = super().request_options(given)
        if options["truncate_dim"] is not None and options["truncate_dim"] > self.dims:
            raise ValueError(f"option truncate_dim must be {self.dims} or less, not {options['truncate_dim']}")
        return options

    def features(self, columns: Columns, encoder: TextEncoder, options: Options) -> Features:
        texts: Sequence[str] = columns[0]
        if options["prompt"]:
            texts = [options["prompt"] + text for text in texts]
        if self.lower_case:
            texts = [text.lower() for text in texts]
        features = super().features([texts], encoder, options)
        if 0 in map(len, features.encodings):
            row = list(map(len, features.encodings)).index(0)
            raise ValueError(f"row {row} has no token to make an embedding of")
        return features

    def reduced(self, heads: Arrays, feed: Arrays) -> Arrays:
        """Pooled by the mask and cut, as the tail does it; of numpy's arrays or torch's tensors."""
        return {POOLED: _pooled(heads["last_hidden_state"], feed["attention_mask"], self.pooling)[:, : self.dims]}

    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:  # noqa: ARG002 - one row each
        embeddings = outputs[POOLED]
        if options["truncate_dim"] not in (None, self.dims):
            embeddings = embeddings.copy()
            embeddings[:, options["truncate_dim"] :] = 0
        return {"EMBEDDING": _unit(embeddings) if options["normalize"] else embeddings}

    has_pipeline: ClassVar[bool] = False

    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """A list of ``hidden`` floats per row, or with ``return_tensors=True`` a float32 array.

        The pipeline gives a tensor of torch there, which no client needs to have: ``torch.from_numpy`` makes one. With
        ``truncate_dim`` only that many numbers.
        """
        self.refuse_options(options, "return_tensors")
        as_arrays = options.get("return_tensors", False)
        if not isinstance(as_arrays, bool | None):
            raise TypeError(f"return_tensors must be true (arrays of numpy) or false (lists), not {as_arrays!r:.80}")
        embeddings = answers["EMBEDDING"][:, : options.get("truncate_dim")]
        return list(embeddings) if as_arrays else cast(list[Any], embeddings.tolist())

    def pipeline_result(self, inputs: Any, answers: list[Any], options: Mapping[str, Any]) -> Any:
        """With ``return_tensors=True`` the rows of a list as one array, ``[rows, hidden]``; the pipeline gives a list of tensors,
        as its own differ in length."""
        if options.get("return_tensors") and answers and isinstance(inputs, list | tuple):
            return np.stack(answers)
        return super().pipeline_result(inputs, answers, options)

    @property
    def metric(self) -> str:
        return "correlation"

    @property
    def main_metric(self) -> str:
        return "spearman"

    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:  # noqa: ARG002 - one per pair
        return {"labels": list(references)}

    def loss(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> Any:
        """CoSENT (Su 2022): of any two pairs in the batch, the one whose texts are more alike should have the larger cosine.

        It asks for the right order and nothing else, which is what Spearman's correlation measures, so scores may be on any scale.
        """
        first, second = _halves(outputs[POOLED])
        cosines = SHARPNESS * _cosines(first, second)
        labels = targets["labels"]
        wrong = (cosines[None, :] - cosines[:, None]).masked_fill(labels[:, None] <= labels[None, :], -FAR)
        worst = wrong.flatten().logsumexp(0)
        return worst.clamp(min=0) + (-worst.abs()).exp().log1p()  # log(1 + Σ exp(wrong))

    def predictions(self, answers: Arrays) -> list[Any]:
        """The cosine of each pair."""
        return cast(list[Any], _cosines(*_halves(answers["EMBEDDING"])).tolist())

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """By degrees: 1 less the distance (1 - cosine) between an embedding and the original's, as a share of the usual one between
        two texts; the mean of a pair's two.

        A fixed least cosine would ask much of one model and nothing of another, whose embeddings all lie close together. MiniLM
        on STS-B: int8 0.9935 (cosines 0.990 to 0.996, none above 0.999, and Spearman as before), fp16 1. Whether the nearest
        neighbour stays the same says less: int8 kept 96 %, what changed being near ties.
        """
        ours, theirs = (_unit(found["EMBEDDING"].astype(np.float64)) for found in (answers, original))
        usual = 1 - (theirs.mean(axis=0) ** 2).sum()  # 1 - the mean cosine of any two
        off = (1 - (ours * theirs).sum(axis=-1)) / max(float(usual), TINY)
        each = np.where(off <= SAME, 1.0, np.clip(1 - off, 0, 1))
        return cast("npt.NDArray[np.float64]", each.reshape(2, -1).mean(axis=0))

    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:
        """Nothing is decided here, so nothing is close."""
        return np.zeros(len(original["EMBEDDING"]) // 2, dtype=np.bool_)


def _hidden(config: Mapping[str, Any]) -> int:
    """Length of a token's vector.

    Raises:
        ValueError: the config does not say.
    """
    for key in HIDDEN_KEYS:
        if isinstance(config.get(key), int):
            return int(config[key])
    raise ValueError(f"its config.json does not say how long a token's vector is, under none of {', '.join(HIDDEN_KEYS)}")


def _transformer_file(files: Mapping[str, Any]) -> Mapping[str, Any]:
    """What sentence-transformers says of the model itself; the file is named after some architectures."""
    return next((content for path, content in sorted(files.items()) if fnmatchcase(path, TRANSFORMER_FILES)), {})


def _modules(files: Mapping[str, Any]) -> list[str]:
    """Kinds of the modules of sentence-transformers: the model, and what is done with what it gives.

    Raises:
        ValueError: something that is not done here.
    """
    own = "sentence_transformers."
    types = [str(module["type"]) for module in files[MODULES]]
    kinds = [name.rsplit(".", 1)[-1] if name.startswith(own) else name for name in types]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{MODULES} chains {', '.join(kinds)}; known is Transformer, then Pooling, and perhaps Normalize after these"
        )
    return kinds


def _pooling(files: Mapping[str, Any]) -> str:
    """How the pooling module's file says it pools: old ones have a flag for each way, new ones one word.

    Raises:
        ValueError: there is none, or a way that is not known here, or several at once.
    """
    path = f"{files[MODULES][1]['path']}/config.json"
    if path not in files:
        raise ValueError(f"{MODULES} names {path}, which says how its tokens are pooled, and it is not there")
    config = files[path]
    if config.get("include_prompt") is False:
        raise ValueError(f"{path} leaves prompts out of the pooling, which is not known here")
    word = config.get("pooling_mode")
    flags = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    chosen = [word] if isinstance(word, str) else [POOLING_KEYS.get(key, key.removeprefix("pooling_mode_")) for key in flags]
    found = [{"lasttoken": LAST}.get(one, one) for one in chosen]
    if len(found) != 1 or found[0] not in POOLINGS:
        raise ValueError(f"{path} asks for pooling by {' and '.join(found) or 'nothing'}; known are {', '.join(POOLINGS)}")
    return found[0]


def _pooled(hidden: Any, mask: Any, pooling: str) -> Any:
    """``[rows, longest, hidden]`` and its mask → ``[rows, hidden]``, of numpy's arrays or torch's tensors alike.

    Padding is on the right.
    """
    if pooling == CLS:
        return hidden[:, 0]
    mask = mask.astype(hidden.dtype) if isinstance(mask, np.ndarray) else mask.to(hidden.dtype)
    if pooling == MAX:
        kept = hidden - FAR * (1 - mask)[:, :, None]
        return getattr(kept, "amax", kept.max)(1)  # torch's max gives positions too
    weights = mask
    if pooling == LAST:
        weights = mask * (mask.cumsum(1) == mask.sum(1)[:, None])
    return ((weights / weights.sum(1)[:, None])[:, None] @ hidden)[:, 0]


def _halves(rows: Any) -> tuple[Any, Any]:
    """The first and the second texts of all pairs."""
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _cosines(first: Any, second: Any) -> Any:
    """Of each row of one with the same of the other, ``[rows]``; of numpy's arrays or torch's tensors alike."""
    squares = (first * first).sum(-1) * (second * second).sum(-1)
    return (first * second).sum(-1) / (squares + TINY**2) ** 0.5


def _unit(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of length 1; one of nothing but 0 stays."""
    return cast("npt.NDArray[Any]", rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), TINY))


TASK = FeatureExtraction
