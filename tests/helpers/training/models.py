"""Tiny base models with random weights, a small trained tokenizer, and rows to train on."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

WORDS = (
    "red",
    "green",
    "blue",
    "small",
    "large",
    "round",
    "flat",
    "warm",
    "cold",
    "old",
    "new",
    "stone",
    "river",
    "cloud",
    "bird",
    "tree",
    "house",
    "road",
    "moon",
    "sun",
    "runs",
    "falls",
    "sings",
    "grows",
    "shines",
    "opens",
    "turns",
    "stays",
    "sleeps",
    "and",
    "or",
    "not",
    "with",
    "under",
    "over",
    "near",
    "far",
    "before",
    "after",
)


def question(number: int) -> dict[str, str]:
    """A row whose answer follows from its question, so that there is something to learn."""
    first, second = WORDS[number % len(WORDS)], WORDS[(number * 7 + 3) % len(WORDS)]
    return {
        "question": f"what is {first} {second} {number % 5}?",
        "answer": f"{second} {first}" + f" {WORDS[number % 11]}" * (1 + number % 3),
    }


def write_rows(path: Path, count: int = 96) -> Path:
    """A JSONL file of `count` questions and answers."""
    path.write_text("".join(json.dumps(question(i)) + "\n" for i in range(count)))
    return path


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the rows, with an eos and no pad token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    texts = (" ".join(question(i).values()) for i in range(200))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=512
    )


def model_config(family: str, vocabulary: int, hidden: int = 32) -> PretrainedConfig:
    """A two-layer configuration of one of the families the project promises."""
    llama_like = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if family == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary,
            n_embd=hidden,
            n_layer=2,
            n_head=4,
            n_positions=128,
            bos_token_id=0,
            eos_token_id=1,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
        )
    return (Qwen2Config if family == "qwen2" else LlamaConfig)(**llama_like)


def make_model(folder: Path, family: str = "llama", hidden: int = 32, seed: int = 0) -> Path:
    """A folder `from_pretrained` reads; equal arguments give equal weights."""
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = model_config(family, len(tokenizer), hidden)
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_mixtral(folder: Path, like: Path) -> Path:
    """A tiny Mixtral of four experts, with the tokenizer of another model."""
    settings = json.loads((like / "config.json").read_text())
    config = MixtralConfig(
        vocab_size=settings["vocab_size"], hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "llama with biases": LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True, head_dim=16),
    "llama tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": MistralConfig(**GROUPED, head_dim=8),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "phi": PhiConfig(**SMALL),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64),
}
"""A tiny configuration of every architecture whose shapes `trial.model.known_shapes` knows."""


def tiny_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of one of the `ARCHITECTURES` with random weights, always the same."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[name]).to(dtype)
