"""Makes small worlds that a trial may start in: rows, tokenizers, model folders, arguments.

    python tests/broken_worlds/make_worlds.py FOLDER    # writes each, and its configuration

Many are broken in a way that only a worker would notice, some are sound and look broken. What is
expected of them is told by `World.refused`: the key that `check` names, or "" for a sound one.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import json
from dataclasses import replace

import torch
from broken_worlds.material import (
    CHAT,
    MODEL,
    REFUSES_SYSTEM,
    TAKES_ALL,
    TOKENIZER,
    TORCH_ADAM,
    Material,
    World,
    add_pad,
    add_word,
    another,
    changed_tokenizer,
    cut_short,
    deepspeed,
    edit,
    lora,
    mixtral,
    mixtral_with,
    pickled,
    records,
    sharded,
    template,
    training,
    weights,
    without,
    without_eos,
)

NVME = {"device": "nvme"}
NAMES = ["q_proj", "v_proj"]
INIT, TOKENS = "lora.init_lora_weights", "lora.trainable_token_indices"
BASES = {
    "sound": World(),
    "adapter beside the base": World(
        MODEL, model=edit("adapter_config.json", peft_type="LORA", base_model_name_or_path="x")
    ),
    "quantised": World(
        MODEL,
        model=edit("config.json", quantization_config={"quant_method": "fp8"}),
    ),
    "quantised for bitsandbytes": World(
        MODEL,
        model=edit(
            "config.json",
            quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
        ),
    ),
    "classifier": World(MODEL, model=another("LlamaForSequenceClassification", "LlamaConfig")),
    "bare model": World(MODEL, model=another("LlamaModel", "LlamaConfig")),
    "bare tied model": World(
        model=another("LlamaModel", "LlamaConfig", tie_word_embeddings=True)
    ),
    "tied model": World(
        model=another("LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True)
    ),
    "bare gpt2": World(model=another("GPT2Model", "GPT2Config")),
    "bare gpt_neox": World(MODEL, model=another("GPTNeoXModel", "GPTNeoXConfig")),
    "bert": World(MODEL, model=another("BertForMaskedLM", "BertConfig")),
    "bare bert": World(MODEL, model=another("BertModel", "BertConfig")),
    "bert as a decoder": World(
        model=another("BertLMHeadModel", "BertConfig", is_decoder=True)
    ),
    "roberta": World(MODEL, model=another("RobertaForMaskedLM", "RobertaConfig")),
    "bart": World(
        MODEL,
        model=another(
            "BartForConditionalGeneration", "BartConfig", d_model=16, encoder_layers=1,
            decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
            decoder_attention_heads=2,
        ),
    ),
    "t5": World(MODEL, model=another("T5ForConditionalGeneration", "T5Config", d_model=16)),
    "mamba": World(
        "lora.target_modules", model=another("MambaForCausalLM", "MambaConfig", state_size=4)
    ),
    "mamba with other targets": World(
        model=another("MambaForCausalLM", "MambaConfig", state_size=4),
        sections=lora(target_modules=["in_proj", "x_proj"]),
    ),
    "mixtral": World(model=mixtral),
    "mixtral with the router's loss": World(model=mixtral_with(output_router_logits=True)),
    "mixtral with the router's loss by no number": World(
        MODEL, model=mixtral_with(output_router_logits=True, router_aux_loss_coef="much")
    ),
    "opt": World(model=another("OPTForCausalLM", "OPTConfig", ffn_dim=24, word_embed_proj_dim=16)),
    "bloom with dropout": World(
        model=another("BloomForCausalLM", "BloomConfig", n_layer=1, n_head=2, hidden_dropout=0.2)
    ),
    "falcon with dropout": World(
        model=another("FalconForCausalLM", "FalconConfig", hidden_dropout=0.2)
    ),
    "recurrent gemma": World(
        MODEL,
        model=another(
            "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", num_key_value_heads=2, lru_width=16
        ),
    ),
    "a layer is missing": World(MODEL, model=without("layers.1.mlp")),
    "the norm is missing": World(MODEL, model=without("model.norm")),
    "the head is missing": World(MODEL, model=without("lm_head")),
    "one more layer in the file": World(model=edit("config.json", num_hidden_layers=1)),
    "one more layer in the settings": World(MODEL, model=edit("config.json", num_hidden_layers=3)),
    "other width": World(MODEL, model=edit("config.json", intermediate_size=40)),
    "fewer words": World(MODEL, model=edit("config.json", vocab_size=200)),
    "cut short": World(MODEL, model=cut_short),
    "pickled": World(model=pickled),
    "a shard is missing": World(MODEL, model=sharded),
    "without architectures": World(model=edit("config.json", architectures=None)),
    "flex attention": World(
        "model.attn_implementation", {"model": {"attn_implementation": "flex_attention"}}
    ),
    "float8": World(
        MODEL,
        model=weights(lambda t: {name: x.to(torch.float8_e4m3fn) for name, x in t.items()}),
    ),
    "unknown attention": World(
        "model.attn_implementation", {"model": {"attn_implementation": "flash_attention_9"}}
    ),
}  # fmt: skip
TEXTS = {
    "no eos": World(TOKENIZER, model=changed_tokenizer(without_eos)),
    "pad beyond the embeddings": World(MODEL, model=changed_tokenizer(add_pad)),
    "a word beyond the embeddings": World(
        MODEL,
        model=changed_tokenizer(add_word),
        rows=records({"question": "what zebra", "answer": "a"}),
    ),
    "a word beyond the embeddings, unused": World(model=changed_tokenizer(add_word)),
    "broken tokenizer": World(
        MODEL, model=lambda folder, _: (folder / "tokenizer.json").write_text("{") and None
    ),
    "lone surrogate": World("data.path", rows=records({"question": "what \ud83d?", "answer": "a"})),
    "lone surrogate in an answer": World(
        "data.path", rows=records({"question": "what?", "answer": "a \udc00"})
    ),
    "template without a system role": World(
        "data.prompt_format", model=template(REFUSES_SYSTEM), rows=records({"messages": CHAT})
    ),
    "template without a system role, unused": World(model=template(REFUSES_SYSTEM)),
    "the same as llama2": World(
        model=template(REFUSES_SYSTEM),
        rows=records({"messages": CHAT}),
        sections={"data": {"prompt_format": "llama2"}},
    ),
    "own template with a mistake": World(
        "data.chat_template", {"data": {"chat_template": "{% for m in messages %}"}}
    ),
    "own template that reads no messages": World(
        "data.chat_template", {"data": {"chat_template": "{{ mesages }}"}}
    ),
    "own template without a system role": World(
        "data.chat_template",
        {"data": {"chat_template": REFUSES_SYSTEM}},
        rows=records({"messages": CHAT}),
    ),
    "own template in place of one that refuses": World(
        sections={"data": {"chat_template": TAKES_ALL}},
        model=template(REFUSES_SYSTEM),
        rows=records({"messages": CHAT}),
    ),
    "template with a mistake": World("data.prompt_format", model=template("{% for m in %}")),
    "chat without a template": World(rows=records({"messages": CHAT})),
    "one prompt": World(rows=records({"question": "why", "answer": "a"})),
    "no completion": World("data.path", rows=records({"question": "what", "answer": ""})),
    "longer than allowed": World(rows=records({"question": "what " * 90, "answer": "b " * 90})),
}
ADAPTERS = {
    "corda": World(INIT, lora(init_lora_weights="corda")),
    "loftq": World(INIT, lora(init_lora_weights="loftq")),
    "lora_ga": World(INIT, lora(init_lora_weights="lora_ga")),
    "pissa": World(sections=lora(init_lora_weights="pissa")),
    "olora": World(sections=lora(init_lora_weights="olora")),
    "gaussian": World(sections=lora(init_lora_weights="gaussian")),
    "orthogonal with an odd rank": World("lora.r", lora(init_lora_weights="orthogonal", r=3)),
    "unknown start": World(INIT, lora(init_lora_weights="guassian")),
    "layers of a pattern": World(
        "lora.layers_to_transform", lora(layers_to_transform=[0], target_modules=".*q_proj")
    ),
    "layers of all-linear": World("lora.layers_to_transform", lora(layers_to_transform=[0])),
    "layers": World(sections=lora(layers_to_transform=[1], target_modules=NAMES)),
    "layers out of range": World(
        "lora.layers_to_transform", lora(layers_to_transform=[9], target_modules=NAMES)
    ),
    "some layers out of range": World(
        "lora.layers_to_transform", lora(layers_to_transform=[0, 9], target_modules=NAMES)
    ),
    "everything excluded": World(
        "lora.target_modules", lora(target_modules=NAMES, exclude_modules=NAMES)
    ),
    "pattern without layers": World("lora.layers_pattern", lora(layers_pattern="layers")),
    "dora with biases": World("lora.use_dora", lora(use_dora=True, lora_bias=True)),
    "dora": World(sections=lora(use_dora=True)),
    "no rank": World(sections=lora(r=0)),
    "saved module": World(sections=lora(modules_to_save=["lm_head"])),
    "a norm as a target": World("lora.target_modules", lora(target_modules=["input_layernorm"])),
    "all biases": World(sections=lora(bias="all")),
    "rank pattern of no module": World("lora.rank_pattern", lora(rank_pattern={"q_prj": 4})),
    "alpha pattern of no module": World("lora.alpha_pattern", lora(alpha_pattern={"q_prj": 4})),
    "nothing to exclude": World("lora.exclude_modules", lora(exclude_modules=["q_prj"])),
    "nothing to exclude by a pattern": World(
        "lora.exclude_modules", lora(exclude_modules=".*q_prj")
    ),
    "a pattern of a module that is no target": World(
        sections=lora(
            target_modules=NAMES,
            rank_pattern={"up_proj": 4},
            alpha_pattern={"layers.1.self_attn.q_proj": 4},
            exclude_modules=["lm_head"],
        )
    ),
    "alora of no token": World("lora.alora_invocation_tokens", lora(alora_invocation_tokens=[999])),
    "rank pattern": World(sections=lora(rank_pattern={"q_proj": 4})),
    "token beyond the embeddings": World(TOKENS, lora(trainable_token_indices=[999])),
    "negative token": World(TOKENS, lora(trainable_token_indices=[-1])),
    "no token": World(TOKENS, lora(trainable_token_indices=[])),
    "a token of saved embeddings": World(
        TOKENS, lora(trainable_token_indices=[3], modules_to_save=["embed_tokens"])
    ),
    "tokens": World(sections=lora(trainable_token_indices=[3, 5])),
    "unknown parameter": World(
        "lora.target_parameters",
        lora(target_modules=NAMES, target_parameters=["nonsense"], lora_dropout=0.0),
    ),
    "parameter": World(
        sections=lora(
            target_modules=NAMES, target_parameters=["mlp.up_proj.weight"], lora_dropout=0.0
        )
    ),
    "eva": World(sections=lora(init_lora_weights="eva")),
    "eva of more components than tokens": World("lora.r", lora(init_lora_weights="eva", r=600)),
    "eva with partitioned weights": World(
        "zero_stage", {**lora(init_lora_weights="eva"), "zero_stage": 3}
    ),
    "mica beyond a layer's width": World("lora.r", lora(init_lora_weights="mica", r=17)),
    "olora for transposed weights": World(
        INIT, lora(init_lora_weights="olora"), another("GPT2LMHeadModel", "GPT2Config")
    ),
    "eva for experts": World(INIT, lora(init_lora_weights="eva"), mixtral),
    "saved block": World(sections=lora(modules_to_save=["mlp"])),
    "megatron": World("lora.megatron_config", lora(megatron_config={"a": 1}, target_modules=NAMES)),
}
ARGUMENTS = {
    "bitsandbytes": World("training.optim", training(optim="adamw_bnb_8bit")),
    "galore": World("training.optim", training(optim="galore_adamw")),
    "lomo": World("training.optim", training(optim="lomo")),
    "fused": World(sections=training(optim="adamw_torch_fused")),
    "adafactor": World(sections=training(optim="adafactor")),
    "sgd": World(sections=training(optim="sgd")),
    "optim_args that AdamW ignores": World(
        "training.optim_args",
        training(optim="adamw_torch", optim_args="amsgrad=True"),
        idle=True,
    ),
    "save_only_model": World("training.save_only_model", training(save_only_model=True), idle=True),
    "unknown lr_scheduler_kwargs": World(
        "training.lr_scheduler_kwargs", training(lr_scheduler_kwargs={"num_cycle": 2})
    ),
    "lr_scheduler_kwargs": World(sections=training(lr_scheduler_kwargs={"num_cycles": 0.4})),
    "polynomial above its start": World(
        "training.lr_scheduler_kwargs",
        training(
            lr_scheduler_type="polynomial", lr_scheduler_kwargs={"lr_end": 1.0}, warmup_ratio=0.0
        ),
    ),
    "min_lr missing": World(
        "training.lr_scheduler_kwargs", training(lr_scheduler_type="cosine_with_min_lr")
    ),
    "a word for a number in the schedule": World(
        "training.lr_scheduler_kwargs",
        training(lr_scheduler_kwargs={"num_cycles": "half"}, warmup_steps=0),
    ),
    "a decay in no step": World(
        "training.lr_scheduler_type",
        training(lr_scheduler_type="polynomial", warmup_steps=1),
    ),
    "min_lr twice": World(
        "training.lr_scheduler_kwargs",
        training(
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr": 1e-5, "min_lr_rate": 0.1},
        ),
    ),
    "plateau with a word for a number": World(
        "training.lr_scheduler_kwargs",
        training(
            lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": "long"}
        ),
    ),
    "plateau": World(sections=training(lr_scheduler_type="reduce_lr_on_plateau")),
    "prefetch_factor": World(
        "training.dataloader_prefetch_factor", training(dataloader_prefetch_factor=2)
    ),
    "persistent workers": World(
        "training.dataloader_persistent_workers", training(dataloader_persistent_workers=True)
    ),
    "fp16": World("training.fp16", training(fp16=True)),
    "bf16": World(sections=training(bf16=True)),
    "bf16 and fp16": World("training.fp16", training(fp16=True, bf16=True)),
    "tf32": World("training.tf32", training(tf32=True)),
    "liger": World("training.use_liger_kernel", training(use_liger_kernel=True)),
    "fsdp": World("training.fsdp", training(fsdp="full_shard")),
    "long data_seed": World("training.data_seed", training(data_seed=2**70)),
    "no steps": World("training.max_steps", training(max_steps=0)),
    "checkpointing": World(sections=training(gradient_checkpointing=True)),
    "unknown keyword of checkpointing": World(
        "training.gradient_checkpointing_kwargs",
        training(gradient_checkpointing=True, gradient_checkpointing_kwargs={"reentrant": True}),
    ),
    "compiler of a Gaudi": World("training.torch_compile", training(torch_compile=True)),
    "checkpointing of a model that cannot": World(
        "training.gradient_checkpointing",
        training(gradient_checkpointing=True),
        another("CTRLLMHeadModel", "CTRLConfig", n_embd=16, n_layer=1, n_head=2, n_positions=64),
    ),
    "less noise than none": World(
        "training.neftune_noise_alpha", training(neftune_noise_alpha=-1.0)
    ),
    "neftune": World(sections=training(neftune_noise_alpha=5.0)),
    "by length": World(sections=training(group_by_length=True)),
    "no evaluation": World(sections=training(eval_strategy="no")),
    "save the best": World(sections=training(save_strategy="best")),
    "accelerator": World(
        "training.accelerator_config", training(accelerator_config={"split_batch": True})
    ),
    "a fixed rate for DeepSpeed": World(
        sections=deepspeed({"optimizer": {"type": "AdamW", "params": {"lr": 0.5, **TORCH_ADAM}}})
    ),
    "a schedule for DeepSpeed": World(
        sections=deepspeed({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 9}}})
    ),
    "another optimizer for DeepSpeed": World(
        "deepspeed.config", deepspeed({"optimizer": {"type": "Lamb", "params": {"lr": 0.5}}})
    ),
    "a word for DeepSpeed's section": World(
        "deepspeed.config", deepspeed({"zero_optimization": "all"})
    ),
    "unknown key for DeepSpeed": World(
        "deepspeed.config", deepspeed({"zero_optimization": {"overlap": True}})
    ),
    "a disk for DeepSpeed without its path": World(
        "deepspeed.config", deepspeed({"zero_optimization": {"offload_param": NVME}}, 3)
    ),
    "Apex for DeepSpeed": World("deepspeed.config", deepspeed({"amp": {"enabled": True}})),
    "float16 for DeepSpeed": World("deepspeed.config", deepspeed({"fp16": {"enabled": True}})),
    "unknown parameter of DeepSpeed's AdamW": World(
        "deepspeed.config",
        deepspeed({"optimizer": {"type": "AdamW", "params": {"momentum": 0.9, **TORCH_ADAM}}}),
    ),
    "DeepSpeed": World(sections={"zero_stage": 1}),
}
PACKED = {
    f"{name}, packed": replace(world, sections={**world.sections, "packed": True})
    for name, world in {**BASES, **TEXTS, **ADAPTERS, **ARGUMENTS}.items()
    if name
    in (
        "sound", "mixtral", "mamba", "bare gpt2", "bare model", "pad beyond the embeddings",
        "lone surrogate", "rank pattern", "rank pattern of no module", "a norm as a target",
        "unknown lr_scheduler_kwargs",
        "polynomial above its start", "eva", "opt", "bloom with dropout", "falcon with dropout",
        "mixtral with the router's loss", "mamba with other targets", "no token",
    )
}  # fmt: skip
"""Some of them in a slot of a packed job, which builds other things than a trial alone."""
WORLDS: dict[str, World] = {**BASES, **TEXTS, **ADAPTERS, **ARGUMENTS, **PACKED}


def main(folder: Path) -> None:
    """Write all worlds below a folder."""
    folder.mkdir(parents=True)
    material = Material(folder)
    for name, world in WORLDS.items():
        file = folder / f"{name.replace(' ', '_')}.json"
        file.write_text(json.dumps(material.content(name, world), indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
