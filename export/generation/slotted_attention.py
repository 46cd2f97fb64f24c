"""Attention whose past keys and values stay in slots: one row of a cache for each row of a batch. Imports torch.

Every layer of a model that calls the ``AttentionInterface`` of ``transformers`` becomes one ``GroupQueryAttention`` operator of
ONNX Runtime. It appends the new keys and values to the cache in place, so a step costs no copy of the past. The rotary embedding
stays outside of the operator.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from export.generation.group_query_attention import AttentionAttributes, SlottedCache, group_query_attention
from serving.errors import ExportError

FAMILIES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "granite", "olmo2", "smollm3",
    "starcoder2", "gpt2", "gpt_neox", "gpt_bigcode", "opt", "olmo", "olmo3", "exaone4", "persimmon", "biogpt", "seed_oss", "arcee",
    "hunyuan_v1_dense", "bitnet", "vaultgemma",
)  # fmt: skip
"""Architectures that the tests export."""
TESTED = f"{', '.join(FAMILIES[:-1])} and {FAMILIES[-1]} are tested; vLLM itself serves many others"
HEAD_SIZE_MULTIPLE = 8
"""ONNX Runtime's operator needs heads of a multiple of this size."""
FAR = 2**24
"""A position beyond the end of every text, to find out which earlier positions a mask hides."""
WITHOUT_EFFECT = frozenset(
    {"cache_position", "dropout", "is_causal", "output_attentions", "output_hidden_states", "position_ids", "use_cache"}
)
"""Arguments of the interface that the operator need not know: dropout is off, and the mask says what is causal."""

MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From the indices of a row, a head, a query and a key to whether the query sees the key; elementwise."""


@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    """What the attention of one layer needs.

    Attributes:
        heads: Number of query heads.
        kv_heads: Number of key and value heads.
        head_size: Size of a head.
        scale: Factor of the dot products.
        window: Number of tokens that a token sees, itself included; None: all.
        softcap: Bound of the dot products, by a hyperbolic tangent; 0: none.
    """

    heads: int
    kv_heads: int
    head_size: int
    scale: float
    window: int | None
    softcap: float

    @property
    def attributes(self) -> AttentionAttributes:
        """Attributes of the operator."""
        return AttentionAttributes(
            heads=self.heads, kv_heads=self.kv_heads, scale=self.scale, window=self.window or -1, softcap=self.softcap
        )


@dataclass(frozen=True)
class VisibleKeys:
    """What ``transformers`` passes to the layers in place of a mask.

    Attributes:
        function: Which keys a query sees.
    """

    function: MaskFunction

    def is_causal(self, window: int | None) -> bool:
        """Return whether a query sees itself and the earlier keys of the window, and nothing else."""
        back = sorted({0, 1, 2, FAR // 2, FAR, *((window - 1, window, 2 * window) if window else ())})
        queries = torch.tensor([*range(8), *(start + FAR for start in range(8))])[:, None]
        keys = torch.cat([queries - torch.tensor(back), queries + torch.tensor([1, 2, FAR])], dim=1)
        queries = queries.expand_as(keys)[keys >= 0]
        keys = keys[keys >= 0]
        expected = (keys <= queries) & (keys > queries - window if window else torch.tensor(True))
        zero = torch.zeros_like(keys)
        return bool((self.function(zero, zero, queries, keys) == expected).all())


class _NewTokensOnly(DynamicCache):  # type: ignore[misc]  # nor has transformers
    """Gives attention the keys and values of the new tokens alone, because the operator has those of the past."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_seq_length(self, *_: object, **__: object) -> int:
        return 0


@dataclass
class SlottedAttention:
    """The attention of one model during one export.

    Attributes:
        past: Past keys and values of each layer, ``[rows, kv heads, capacity, head size]`` each; None while the layers are found.
        last_index: INT32 ``[rows]``, index of each row's last token.
        total_length: INT32 ``[]``, tokens of the longest row.
        layers: The layers that called, by their index.
        present: Keys and values that the layers return.
    """

    past: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None
    last_index: torch.Tensor | None = None
    total_length: torch.Tensor | None = None
    layers: dict[int, AttentionLayer] = field(default_factory=dict)
    present: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @contextlib.contextmanager
    def used_by(self, model: Any) -> Iterator[None]:
        """Let a model of ``transformers`` use this attention.

        Args:
            model: The model. One without the interface keeps its own attention, which :meth:`require_layers` finds.
        """
        name, before = f"slotted_{uuid.uuid4().hex}", model.config._attn_implementation
        AttentionInterface.register(name, self.attend)
        AttentionMaskInterface.register(name, _visible_keys)
        try:
            model.set_attn_implementation(name)
            yield
        finally:
            model.set_attn_implementation(before)
            AttentionInterface._global_mapping.pop(name)
            AttentionMaskInterface._global_mapping.pop(name)

    def begin(
        self, past: Sequence[tuple[torch.Tensor, torch.Tensor]] | None, last_index: torch.Tensor, total_length: torch.Tensor
    ) -> DynamicCache:
        """Take the inputs of a step, and return the cache to give to the model."""
        self.past, self.last_index, self.total_length = past, last_index, total_length
        self.layers, self.present = {}, {}
        return _NewTokensOnly()

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: VisibleKeys | torch.Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **others: object,
    ) -> tuple[torch.Tensor, None]:
        """Compute attention as the interface of ``transformers`` asks for it.

        Args:
            module: The attention of a layer.
            query: ``[rows, heads, tokens, head size]``.
            key: ``[rows, kv heads, tokens, head size]``.
            value: As ``key``.
            attention_mask: What the queries see.
            scaling: Factor of the dot products; None: 1 divided by the square root of the head size.
            sliding_window: Number of tokens that a token sees; None: all.
            softcap: Bound of the dot products; None: none.
            others: Further arguments.

        Returns:
            ``[rows, tokens, heads, head size]`` and no weights.

        Raises:
            ExportError: The operator cannot compute this attention.
        """
        index = _layer_index(module, self.layers)
        layer = AttentionLayer(
            heads=int(query.shape[1]),
            kv_heads=int(key.shape[1]),
            head_size=int(query.shape[3]),
            scale=_default_scale(module, int(query.shape[3])) if scaling is None else float(scaling),
            window=int(sliding_window) if sliding_window else None,
            softcap=float(softcap or 0.0),
        )
        self.layers[index] = layer
        if self.past is None:
            _require_known(index, others)
            _require_sizes(index, layer, key, value)
            _require_causal(index, module, attention_mask, layer.window)
            return query.transpose(1, 2), None
        assert self.last_index is not None
        assert self.total_length is not None
        query, key, value = (one.transpose(1, 2).reshape(one.shape[0], one.shape[2], -1) for one in (query, key, value))
        past_key, past_value = self.past[index]
        cache = SlottedCache(key=past_key, value=past_value, seqlens_k=self.last_index, total_sequence_length=self.total_length)
        output, *present = group_query_attention(query, key, value, cache, layer.attributes)
        self.present[index] = (present[0], present[1])
        return output.reshape(output.shape[0], output.shape[1], layer.heads, layer.head_size), None

    def require_layers(self, model: Any) -> tuple[AttentionLayer, ...]:
        """Return what the layers need, after checking that each of them called the interface.

        Raises:
            ExportError: A layer did not.
        """
        count = int(model.config.get_text_config(decoder=True).num_hidden_layers)
        if sorted(self.layers) != list(range(count)):
            called = f"{len(self.layers)} of its {count} layers call" if self.layers else "its layers do not call"
            raise ExportError(
                f"the architecture {model.config.model_type!r} cannot be exported for generation: {called} the attention interface "
                "of transformers",
                hint=TESTED,
            )
        return tuple(self.layers[index] for index in range(count))


def _visible_keys(*, mask_function: MaskFunction, **_: object) -> VisibleKeys:
    """Stand for the mask that ``transformers`` would make."""
    return VisibleKeys(mask_function)


def _layer_index(module: Any, known: dict[int, AttentionLayer]) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int) or index in known:
        found = "has no index" if index is None else f"has the index {index}, as another one"
        raise ExportError(f"an attention layer ({type(module).__name__}) {found}, so it has no place in the cache", hint=TESTED)
    return index


def _default_scale(module: Any, head_size: int) -> float:
    """Return the factor of a layer that names none.

    GPT-2's options for another one are applied by the attention ``eager`` of ``transformers`` and ignored by its default, ``sdpa``.
    """
    for option, usual in {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}.items():
        if getattr(module, option, usual) != usual:
            raise ExportError(
                f"{option} = {not usual} in config.json cannot be exported: transformers itself computes it in two ways"
            )
    return float(head_size**-0.5)


def _require_known(index: int, others: dict[str, Any]) -> None:
    unknown = sorted(name for name, value in others.items() if value is not None and name not in WITHOUT_EFFECT)
    if unknown:
        raise ExportError(
            f"layer {index} gives its attention {', '.join(unknown)}, which ONNX Runtime's GroupQueryAttention does not compute",
            hint=TESTED,
        )


def _require_sizes(index: int, layer: AttentionLayer, key: torch.Tensor, value: torch.Tensor) -> None:
    sizes = {layer.head_size, int(key.shape[3]), int(value.shape[3])}
    if len(sizes) > 1 or key.shape[1] != value.shape[1]:
        raise ExportError(f"layer {index} has keys and values of different sizes, which cannot be exported", hint=TESTED)
    if layer.head_size % HEAD_SIZE_MULTIPLE or layer.heads % layer.kv_heads:
        raise ExportError(
            f"layer {index} has {layer.heads} heads of size {layer.head_size} over {layer.kv_heads} key heads, but ONNX Runtime "
            f"needs a size that is a multiple of {HEAD_SIZE_MULTIPLE}, and a multiple of the key heads"
        )


def _require_causal(index: int, module: Any, mask: VisibleKeys | torch.Tensor | None, window: int | None) -> None:
    """Check that a layer sees what the operator lets it see; a tensor is checked for the tokens of the step alone."""
    if isinstance(mask, VisibleKeys):
        causal = mask.is_causal(window)
    elif isinstance(mask, torch.Tensor):
        visible = mask if mask.dtype == torch.bool else mask == 0
        queries, keys = visible.shape[-2:]
        causal = window is None and bool((visible == torch.ones(queries, keys).tril().bool()).all())
    else:
        causal = window is None and getattr(module, "is_causal", True)
    if not causal:
        seen = f"the last {window} tokens" if window else "all earlier tokens"
        raise ExportError(f"layer {index} does not see exactly {seen}, so its attention cannot be exported", hint=TESTED)
