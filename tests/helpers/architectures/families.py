"""Tiny base models of many architectures that transformers has, of two layers with random weights.

make_family(folder, "qwen3", tokenizer)     # a folder that `from_pretrained` reads
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

HIDDEN, LAYERS, HEADS, POSITIONS = 32, 2, 4, 64
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS,
    "head_dim": 8, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1,
    "initializer_range": 0.1,
}  # fmt: skip
"""Sizes under the names that most configurations share; each gets those that it knows."""
GPT: dict[str, Any] = {
    "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS,
}  # fmt: skip
STILL: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
"""Without dropout of the base model's own: its draws are not a plain loop's."""
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK: dict[str, Any] = {
    "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 4,
    "num_key_value_heads": HEADS, **EXPERTS,
}  # fmt: skip
MPT: dict[str, Any] = {
    "d_model": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "max_seq_len": POSITIONS,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How a tiny model of one architecture is made and trained."""

    config: str
    """Class of its configuration."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Beside or instead of `SIZES`."""
    sections: Mapping[str, Any] = field(default_factory=dict)
    """Of the trial."""
    refused: str = ""
    """The key that `check` and worker refuse; empty for an architecture that is trained."""


def targets(*names: str) -> dict[str, Any]:
    """Sections of a trial whose adapter is on these modules."""
    return {"lora": {"target_modules": list(names)}}


FAMILIES: dict[str, Family] = {
    "arcee": Family("ArceeConfig"),
    "bamba": Family(
        "BambaConfig",
        {
            "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16,
            "mamba_n_groups": 1, "attn_layer_indices": [1],
        },
    ),
    "biogpt": Family(
        "BioGptConfig", dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    ),
    "bitnet": Family("BitNetConfig"),
    "bloom": Family("BloomConfig", {"n_layer": LAYERS, "n_head": HEADS}),
    "codegen": Family("CodeGenConfig", {**GPT, "n_ctx": POSITIONS, "rotary_dim": 4}),
    "cohere": Family("CohereConfig"),
    "cohere2": Family("Cohere2Config"),
    "ctrl": Family("CTRLConfig", {**GPT, **STILL, "dff": 48}),
    "dbrx": Family(
        "DbrxConfig",
        {
            **MPT,
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 2, "moe_top_k": 1},
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8},
        },
    ),
    "deepseek_v2": Family("DeepseekV2Config", {**DEEPSEEK, "q_lora_rank": None}),
    "deepseek_v3": Family("DeepseekV3Config", {**DEEPSEEK, "q_lora_rank": 16}),
    "diffllama": Family("DiffLlamaConfig"),
    "doge": Family("DogeConfig", refused="model.attn_implementation"),
    "doge, eager": Family("DogeConfig", sections={"model": {"attn_implementation": "eager"}}),
    "dots1": Family("Dots1Config", {**DEEPSEEK, "head_dim": 8, "n_shared_experts": 1}),
    "ernie4_5": Family("Ernie4_5Config"),
    "exaone4": Family("Exaone4Config"),
    "falcon": Family("FalconConfig"),
    "falcon_mamba": Family(
        "FalconMambaConfig", {"state_size": 4}, targets("in_proj", "x_proj")
    ),
    "gemma": Family("GemmaConfig"),
    "gemma2": Family("Gemma2Config"),
    "gemma3_text": Family("Gemma3TextConfig"),
    "glm": Family("GlmConfig"),
    "glm4": Family("Glm4Config"),
    "gpt2": Family("GPT2Config", {**GPT, **STILL}),
    "gpt_bigcode": Family("GPTBigCodeConfig", {**GPT, **STILL}),
    "gpt_neo": Family(
        "GPTNeoConfig",
        {
            "num_layers": LAYERS, "num_heads": HEADS, "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
        },
    ),
    "gpt_neox": Family("GPTNeoXConfig"),
    "gpt_neox_japanese": Family(
        "GPTNeoXJapaneseConfig", dict.fromkeys(("hidden_dropout", "attention_dropout"), 0.0)
    ),
    "gpt_oss": Family("GptOssConfig", LOCAL_EXPERTS),
    "gptj": Family("GPTJConfig", {**GPT, "rotary_dim": 4}),
    "granite": Family("GraniteConfig"),
    "granitemoe": Family("GraniteMoeConfig", LOCAL_EXPERTS),
    "helium": Family("HeliumConfig"),
    "jetmoe": Family("JetMoeConfig", {**LOCAL_EXPERTS, "kv_channels": 8}),
    "lfm2": Family("Lfm2Config"),
    "llama": Family("LlamaConfig"),
    "mamba": Family("MambaConfig", {"state_size": 4}, targets("in_proj", "x_proj")),
    "mamba, all-linear": Family(
        "MambaConfig", {"state_size": 4}, refused="lora.target_modules"
    ),
    "mamba2": Family(
        "Mamba2Config",
        {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
        targets("in_proj"),
    ),
    "minimax": Family("MiniMaxConfig", LOCAL_EXPERTS),
    "mistral": Family("MistralConfig"),
    "mixtral": Family("MixtralConfig", LOCAL_EXPERTS),
    "mixtral, router loss": Family(
        "MixtralConfig",
        {**LOCAL_EXPERTS, "output_router_logits": True, "router_aux_loss_coef": 0.5},
    ),
    "modernbert_decoder": Family("ModernBertDecoderConfig"),
    "mpt": Family("MptConfig", MPT),
    "nemotron": Family("NemotronConfig"),
    "olmo": Family("OlmoConfig"),
    "olmo2": Family("Olmo2Config"),
    "olmoe": Family("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "opt": Family("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "dropout": 0.0}),
    "persimmon": Family("PersimmonConfig"),
    "phi": Family("PhiConfig"),
    "phi3": Family("Phi3Config"),
    "phimoe": Family("PhimoeConfig", {**LOCAL_EXPERTS, "router_jitter_noise": 0.0}),
    "qwen2": Family("Qwen2Config"),
    "qwen2_moe": Family(
        "Qwen2MoeConfig", {"num_experts": 4, "shared_expert_intermediate_size": 24, **EXPERTS}
    ),
    "qwen3": Family("Qwen3Config"),
    "qwen3_moe": Family("Qwen3MoeConfig", {"num_experts": 4, **EXPERTS}),
    "recurrent_gemma": Family(
        "RecurrentGemmaConfig", {"lru_width": HIDDEN}, refused="model.name_or_path"
    ),
    "rwkv": Family("RwkvConfig"),
    "smollm3": Family("SmolLM3Config"),
    "stablelm": Family("StableLmConfig"),
    "starcoder2": Family("Starcoder2Config"),
    "xglm": Family(
        "XGLMConfig",
        {
            "d_model": HIDDEN, "ffn_dim": 48, "num_layers": LAYERS, "attention_heads": HEADS,
            "dropout": 0.0, "attention_dropout": 0.0,
        },
    ),
}  # fmt: skip
"""By the `model_type` that config.json names, and what is special where there are several."""
OWN_RANDOMNESS: dict[str, Family] = {
    "bloom": Family(
        "BloomConfig",
        {"n_layer": LAYERS, "n_head": HEADS, "hidden_dropout": 0.2, "attention_dropout": 0.2},
    ),
    "falcon": Family("FalconConfig", {"hidden_dropout": 0.2, "attention_dropout": 0.2}),
    "gpt2": Family("GPT2Config", GPT),
    "opt": Family("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "dropout": 0.2}),
    "phimoe": Family("PhimoeConfig", {**LOCAL_EXPERTS, "router_jitter_noise": 0.2}),
}  # fmt: skip
"""Base models that draw random numbers of their own in training."""


def config_of(family: Family, vocabulary: int) -> PretrainedConfig:
    """The configuration of a tiny model."""
    kind = getattr(transformers, family.config)
    plain = kind()
    sizes = {
        name: size
        for name, size in SIZES.items()
        if hasattr(plain, name) and not isinstance(getattr(kind, name, None), property)
    }
    return kind(**{**sizes, "vocab_size": vocabulary, **family.settings})


def make_family(folder: Path, family: Family, tokenizer: Any) -> Path:
    """A folder that `from_pretrained` reads; equal arguments give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(family, len(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
