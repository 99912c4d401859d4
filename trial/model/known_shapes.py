"""Names and shapes of a model's weights, from the content of its `config.json`. Torch-free.

They are needed before the weights are downloaded: for the memory estimate, and to check the module
names in a sweep. The architectures are those of transformers' modeling files; a test compares
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Settings = Mapping[str, Any]
"""The content of `config.json`."""
Shapes = dict[str, tuple[int, ...]]
Weight = tuple[str, tuple[int, ...]]


def shapes_of(settings: Settings) -> Shapes | None:
    """Shapes of a model with these settings; None for an architecture not in `ARCHITECTURES`."""
    weights = ARCHITECTURES.get(str(settings.get("model_type")))
    return None if weights is None else dict(weights(settings))


def known_settings(name: str) -> Settings | None:
    """Settings of a well-known hub model; None when it is not in `KNOWN`."""
    return KNOWN.get(name.lower())


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[Weight]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def _norm(name: str, width: int, bias: bool = False) -> Iterator[Weight]:
    yield f"{name}.weight", (width,)
    if bias:
        yield f"{name}.bias", (width,)


def _llama(settings: Settings) -> Iterator[Weight]:
    """Llama, Mistral, Qwen2 and Qwen3; they differ in biases and in norms of queries and keys."""
    kind, heads = settings["model_type"], settings["num_attention_heads"]
    width, inner = settings["hidden_size"], settings["intermediate_size"]
    size = settings.get("head_dim") or (128 if kind == "qwen3" else width // heads)
    keys = (settings.get("num_key_value_heads") or heads) * size
    bias, inner_bias = bool(settings.get("attention_bias")), bool(settings.get("mlp_bias"))
    yield "model.embed_tokens.weight", (settings["vocab_size"], width)
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q", heads * size), ("k", keys), ("v", keys)):
            yield from _linear(
                f"{prefix}.self_attn.{name}_proj", rows, width, bias or kind == "qwen2"
            )
        yield from _linear(f"{prefix}.self_attn.o_proj", width, heads * size, bias)
        if kind == "qwen3":
            yield from _norm(f"{prefix}.self_attn.q_norm", size)
            yield from _norm(f"{prefix}.self_attn.k_norm", size)
        for name in ("gate_proj", "up_proj"):
            yield from _linear(f"{prefix}.mlp.{name}", inner, width, inner_bias)
        yield from _linear(f"{prefix}.mlp.down_proj", width, inner, inner_bias)
        yield from _norm(f"{prefix}.input_layernorm", width)
        yield from _norm(f"{prefix}.post_attention_layernorm", width)
    yield from _norm("model.norm", width)
    if not settings.get("tie_word_embeddings", False):
        yield "lm_head.weight", (settings["vocab_size"], width)


def _gpt2(settings: Settings) -> Iterator[Weight]:
    """GPT-2; its `Conv1D` layers have weights [inputs, outputs], the transpose of `nn.Linear`."""
    width = settings["n_embd"]
    inner = settings.get("n_inner") or 4 * width
    yield "transformer.wte.weight", (settings["vocab_size"], width)
    yield "transformer.wpe.weight", (settings["n_positions"], width)
    layers = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, inner),
        "mlp.c_proj": (inner, width),
    }
    for layer in range(settings["n_layer"]):
        prefix = f"transformer.h.{layer}"
        for name, shape in layers.items():
            yield f"{prefix}.{name}.weight", shape
            yield f"{prefix}.{name}.bias", shape[1:]
        yield from _norm(f"{prefix}.ln_1", width, bias=True)
        yield from _norm(f"{prefix}.ln_2", width, bias=True)
    yield from _norm("transformer.ln_f", width, bias=True)
    if not settings.get("tie_word_embeddings", True):
        yield "lm_head.weight", (settings["vocab_size"], width)


def _gpt_neox(settings: Settings) -> Iterator[Weight]:
    """GPT-NeoX, for example Pythia."""
    width, inner = settings["hidden_size"], settings["intermediate_size"]
    bias = settings.get("attention_bias", True)
    yield "gpt_neox.embed_in.weight", (settings["vocab_size"], width)
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"gpt_neox.layers.{layer}"
        yield from _norm(f"{prefix}.input_layernorm", width, bias=True)
        yield from _norm(f"{prefix}.post_attention_layernorm", width, bias=True)
        yield from _linear(f"{prefix}.attention.query_key_value", 3 * width, width, bias)
        yield from _linear(f"{prefix}.attention.dense", width, width, bias)
        yield from _linear(f"{prefix}.mlp.dense_h_to_4h", inner, width, True)
        yield from _linear(f"{prefix}.mlp.dense_4h_to_h", width, inner, True)
    yield from _norm("gpt_neox.final_layer_norm", width, bias=True)
    if not settings.get("tie_word_embeddings", False):
        yield "embed_out.weight", (settings["vocab_size"], width)


def _phi(settings: Settings) -> Iterator[Weight]:
    """Phi-1, 1.5 and 2."""
    width, inner = settings["hidden_size"], settings["intermediate_size"]
    heads = settings["num_attention_heads"]
    keys = (settings.get("num_key_value_heads") or heads) * (width // heads)
    yield "model.embed_tokens.weight", (settings["vocab_size"], width)
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, rows in (("q_proj", width), ("k_proj", keys), ("v_proj", keys), ("dense", width)):
            yield from _linear(f"{prefix}.self_attn.{name}", rows, width, True)
        yield from _linear(f"{prefix}.mlp.fc1", inner, width, True)
        yield from _linear(f"{prefix}.mlp.fc2", width, inner, True)
        yield from _norm(f"{prefix}.input_layernorm", width, bias=True)
    yield from _norm("model.final_layernorm", width, bias=True)
    yield from _linear("lm_head", settings["vocab_size"], width, True)


ARCHITECTURES: dict[str, Callable[[Settings], Iterator[Weight]]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "phi": _phi,
}
"""Weights by model type; other types need their files."""


def _decoder(
    kind: str,
    vocabulary: int,
    width: int,
    inner: int,
    layers: int,
    heads: tuple[int, int],
    positions: int,
    **more: Any,
) -> Settings:
    """Settings of a Llama-like model; `heads` is (query heads, key and value heads)."""
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": positions,
        **more,
    }


_LLAMA_1_7B = _decoder("llama", 32000, 4096, 11008, 32, (32, 32), 2048)
_LLAMA_2_7B = _decoder("llama", 32000, 4096, 11008, 32, (32, 32), 4096)
_LLAMA_2_13B = _decoder("llama", 32000, 5120, 13824, 40, (40, 40), 4096)
_LLAMA_2_70B = _decoder("llama", 32000, 8192, 28672, 80, (64, 8), 4096)
_LLAMA_3_8B = _decoder("llama", 128256, 4096, 14336, 32, (32, 8), 8192)
_LLAMA_3_70B = _decoder("llama", 128256, 8192, 28672, 80, (64, 8), 8192)
_LLAMA_31_8B = {**_LLAMA_3_8B, "max_position_embeddings": 131072}
_LLAMA_31_70B = {**_LLAMA_3_70B, "max_position_embeddings": 131072}
_TIED = {"tie_word_embeddings": True}
_LLAMA_32_1B = _decoder("llama", 128256, 2048, 8192, 16, (32, 8), 131072, head_dim=64, **_TIED)
_LLAMA_32_3B = _decoder("llama", 128256, 3072, 8192, 28, (24, 8), 131072, head_dim=128, **_TIED)
_MISTRAL_7B = _decoder("mistral", 32000, 4096, 14336, 32, (32, 8), 32768)
_QWEN_25_7B = _decoder("qwen2", 152064, 3584, 18944, 28, (28, 4), 131072)

_NAMED: dict[str, Settings] = {
    "huggyllama/llama-7b": _LLAMA_1_7B,
    "meta-llama/Llama-2-7b-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-13b-hf": _LLAMA_2_13B,
    "meta-llama/Llama-2-13b-chat-hf": _LLAMA_2_13B,
    "meta-llama/Llama-2-70b-hf": _LLAMA_2_70B,
    "meta-llama/Llama-2-70b-chat-hf": _LLAMA_2_70B,
    "meta-llama/Meta-Llama-3-8B": _LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_3_8B,
    "meta-llama/Meta-Llama-3-70B": _LLAMA_3_70B,
    "meta-llama/Meta-Llama-3-70B-Instruct": _LLAMA_3_70B,
    "meta-llama/Meta-Llama-3.1-8B": _LLAMA_31_8B,
    "meta-llama/Llama-3.1-8B": _LLAMA_31_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_31_8B,
    "meta-llama/Llama-3.1-70B": _LLAMA_31_70B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA_31_70B,
    "meta-llama/Llama-3.2-1B": _LLAMA_32_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_32_1B,
    "meta-llama/Llama-3.2-3B": _LLAMA_32_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_32_3B,
    "mistralai/Mistral-7B-v0.1": _MISTRAL_7B,
    "Qwen/Qwen2.5-7B": _QWEN_25_7B,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN_25_7B,
}
KNOWN: dict[str, Settings] = {name.lower(): settings for name, settings in _NAMED.items()}
"""Published settings of hub models by lower-case name, to check a sweep without their files."""
