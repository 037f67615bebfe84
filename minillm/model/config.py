"""The shape of a Transformer, as one frozen value."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from minillm.core import configs
from minillm.core.errors import UserError
from minillm.model.rope import Rope

Dtype = Literal["float32", "bfloat16"]

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "intermediate_size",
    "max_length",
)
_POSITIVE = (
    "rope_theta",
    "norm_eps",
    "embedding_scale",
    "attention_scale",
    "attention_soft_cap",
    "logit_soft_cap",
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides which function a Transformer computes, and how.

    Attributes:
        vocab_size, hidden_size, num_layers, num_heads, num_kv_heads, head_dim,
            intermediate_size: V, D, L, N, K, H, F.
        windows: cycled over the layers: layer l looks back over `windows[l % len(windows)]`
            tokens, itself among them; None is full causal attention.
        max_length: the longest sequence the model is made for, prompt and answer together.
        rope_theta: base of the rotary frequencies.
        ropes: for layers that turn in different ways or stretched: one for each entry of
            `windows`, cycled with it, None for a layer without positions (SmolLM3). Where absent,
            every layer turns by `rope_theta`.
        norm_eps: added to the mean square in every RMSNorm.
        norms: where a layer norms: "before" attention and before the MLP, "after" them (OLMo 2,
            what they add to the stream), or "both" (Gemma 2).
        activation: of the gate: "silu" makes SwiGLU, "gelu" (tanh form) and "gelu_exact" GeGLU.
        tie_embeddings: whether the output head is the embedding table.
        embedding_scale: factor on the embeddings, in the compute dtype (Gemma).
        attention_bias: biases on queries, keys and values (Qwen2).
        output_bias, mlp_bias: biases on the way out of attention, on all of the MLP (Llama).
        qk_norm: RMSNorm over the head size on queries and keys, before RoPE (Qwen3).
        joint_qk_norm: the same over all heads of a token at once (OLMo 2).
        attention_scale: factor on the scores; 1 / sqrt(H) where absent.
        attention_soft_cap, logit_soft_cap: `cap · tanh(x / cap)` on scores, on logits.
        compute_dtype: of activations and of weights where they are used; parameters themselves,
            norms, softmax and logits are float32.
        remat: what the backward pass keeps of each layer: "none" keeps everything it needs,
            "dots" the results of matrix products, "full" the layer's input alone.
        scan_layers: run the layers as a loop, so that compile time does not grow with depth;
            False lays them out one after the other, which runs faster on CPU.
        attention_implementation: for `pallas_kernels`; None lets it choose by platform.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    windows: tuple[int | None, ...] = (None,)
    max_length: int = 2048
    rope_theta: float = 10_000.0
    ropes: tuple[Rope | None, ...] | None = None
    norm_eps: float = 1e-5
    norms: Literal["before", "after", "both"] = "before"
    activation: Literal["silu", "gelu", "gelu_exact"] = "silu"
    tie_embeddings: bool = True
    embedding_scale: float = 1.0
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    joint_qk_norm: bool = False
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    compute_dtype: Dtype = "float32"
    remat: Literal["none", "dots", "full"] = "none"
    scan_layers: bool = True
    attention_implementation: str | None = None

    def __post_init__(self) -> None:
        for name in _SIZES:
            _require(name, getattr(self, name) >= 1, getattr(self, name), "at least 1", "set 1")
        for name in _POSITIVE:
            value = getattr(self, name)
            _require(name, value is None or value > 0, value, "above 0", "leave it out")
        for name, choices in (
            ("norms", ("before", "after", "both")),
            ("activation", ("silu", "gelu", "gelu_exact")),
            ("compute_dtype", ("float32", "bfloat16")),
            ("remat", ("none", "dots", "full")),
        ):
            value = getattr(self, name)
            wanted = f"one of {', '.join(choices)}"
            _require(name, value in choices, value, wanted, f"try {choices[0]}")
        _require(
            "num_kv_heads",
            self.num_heads % self.num_kv_heads == 0,
            self.num_kv_heads,
            f"a divisor of num_heads={self.num_heads}",
            f"try {math.gcd(self.num_heads, self.num_kv_heads)}",
        )
        _require(
            "head_dim",
            self.head_dim % 2 == 0,
            self.head_dim,
            "an even number, since RoPE turns pairs",
            f"try {self.head_dim + 1}",
        )
        good = bool(self.windows) and all(w is None or w >= 1 for w in self.windows)
        _require(
            "windows",
            good and len(self.windows) <= self.num_layers,
            self.windows,
            f"1 to {self.num_layers} entries (num_layers), each None or at least 1",
            "try (None,) for full attention everywhere",
        )
        _require(
            "joint_qk_norm",
            not (self.qk_norm and self.joint_qk_norm),
            True,
            "one of qk_norm and joint_qk_norm at most",
            "leave one out",
        )
        ropes = () if self.ropes is None else self.ropes
        _require(
            "ropes",
            self.ropes is None or len(ropes) == len(self.windows),
            f"{len(ropes)} entries",
            f"as many as windows has, {len(self.windows)}",
            "give one for each window, or leave it out",
        )
        for rope in ropes:
            if rope is not None:
                rope.check(self.head_dim)

    def rope(self, slot: int) -> Rope | None:
        """What turns queries and keys in the layers at this place of the window pattern."""
        return Rope(self.rope_theta) if self.ropes is None else self.ropes[slot]

    @property
    def groups(self) -> int:
        """G, the query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    def num_params(self) -> int:
        """How many parameters the model has, counted without building it."""
        heads = self.num_heads + 2 * self.num_kv_heads
        attention = self.hidden_size * self.head_dim * (heads + self.num_heads)
        attention += heads * self.head_dim if self.attention_bias else 0
        attention += self.hidden_size if self.output_bias else 0
        attention += 2 * self.head_dim if self.qk_norm else 0
        joint = self.num_heads + self.num_kv_heads
        attention += joint * self.head_dim if self.joint_qk_norm else 0
        mlp = 3 * self.hidden_size * self.intermediate_size
        mlp += 2 * self.intermediate_size + self.hidden_size if self.mlp_bias else 0
        norms = 4 if self.norms == "both" else 2
        layer = attention + mlp + norms * self.hidden_size
        tables = 1 if self.tie_embeddings else 2
        table = self.vocab_size * self.hidden_size
        return tables * table + self.num_layers * layer + self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; `from_dict` is the inverse."""
        return configs.to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, field: str = "model") -> "ModelConfig":
        """Build strictly from plain values; `field` names where they stood.

        Raises:
            UserError: an unknown key, a missing one, a wrong type or a value out of range.
        """
        return configs.build(cls, values, field=field)


def _require(name: str, good: bool, got: object, wanted: str, fix: str) -> None:
    if not good:
        raise UserError(field=f"model.{name}", got=got, wanted=wanted, fix=fix)
