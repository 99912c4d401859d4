"""Every field of PEFT's `LoraConfig`: the trial's loss, plain PEFT's and the merged model's agree.

Each case is trained on four bases: embeddings tied to the head or not, weights in float32 or
bfloat16. One fresh process (`trial.export.reload`) then loads every adapter by plain PEFT and every
merged model by plain transformers. Fields that nothing here can train with are refused by name.
"""

from dataclasses import dataclass, fields

import pytest
import torch
from helpers.paths import ROOT
from helpers.training.models import make_tokenizer, model_config, write_rows
from helpers.training.train import Material
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Qwen2Config

from trial.data.prepare import prepare
from trial.export.merge import merged_model
from trial.export.verify import Exported, measure
from trial.model.load import load_tokenizer
from trial.model.whole_model import save_model

TOLERANCE = 2e-3
"""Nats per token, in float32 and in bfloat16."""
COLON = make_tokenizer().convert_tokens_to_ids(":")
"""A token of every prompt."""
QV = {"target_modules": ["q_proj", "v_proj"]}
EMBED = {"target_modules": ["embed_tokens", "q_proj"]}
HEAD = {"target_modules": ["lm_head", "q_proj"]}
BOTH = {"target_modules": ["embed_tokens", "lm_head"]}

TRAINED = {
    "r": {"r": 3},
    "lora_alpha": {"lora_alpha": 32},
    "lora_dropout": {"lora_dropout": 0.3},
    "target_modules: embed_tokens": EMBED,
    "target_modules: lm_head": HEAD,
    "target_modules: both": BOTH,
    "target_modules: a pattern": {"target_modules": r".*\.1\..*_proj"},
    "exclude_modules": {"exclude_modules": ["q_proj"]},
    "bias: all": {"bias": "all"},
    "bias: lora_only": {"bias": "lora_only"},
    "use_rslora": {"use_rslora": True},
    "use_dora": {"use_dora": True},
    "use_dora: embeddings": {"use_dora": True, **EMBED},
    "modules_to_save: lm_head": {"modules_to_save": ["lm_head"]},
    "modules_to_save: embed_tokens": {"modules_to_save": ["embed_tokens"]},
    "modules_to_save: both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "modules_to_save: norm": {"modules_to_save": ["norm"]},
    "init_lora_weights: gaussian": {"init_lora_weights": "gaussian"},
    "init_lora_weights: false": {"init_lora_weights": False, "lora_alpha": 1},
    "init_lora_weights: pissa": {"init_lora_weights": "pissa"},
    "init_lora_weights: olora": {"init_lora_weights": "olora"},
    "init_lora_weights: orthogonal": {"init_lora_weights": "orthogonal", "lora_alpha": 1},
    "layers_to_transform": {"layers_to_transform": [1]},
    "layers_pattern": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "0.self_attn.v_proj": 6}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2, "v_proj": 64}},
    "trainable_token_indices": {"trainable_token_indices": [3, 40, 41, 42, 43]},
    "layer_replication": {"layer_replication": [[0, 2], [1, 2]]},
    "ensure_weight_tying": {"ensure_weight_tying": True, **BOTH},
    "ensure_weight_tying: modules_to_save": {
        "ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]
    },
    "ensure_weight_tying: trainable tokens": {
        "ensure_weight_tying": True, "trainable_token_indices": [3, 40, 41]
    },
    "lora_bias": {"lora_bias": True},
    "lora_bias: no bias to add to": {"lora_bias": True, "target_modules": ["up_proj"]},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "init_lora_weights: mica": {"init_lora_weights": "mica"},
    "target_parameters": {"target_parameters": ["mlp.down_proj.weight"]},
    "use_bdlora": {"use_bdlora": {"nblocks": 2, "target_modules_bd_b": ["q_proj", "v_proj"]}},
    "alora_invocation_tokens": {"alora_invocation_tokens": [COLON]},
    "kasa_config": {"kasa_config": {}},
    "velora_config": {"velora_config": {}},
}  # fmt: skip
"""Values of a trial's `lora` section by the field that they are about."""
MERGE_REFUSED = {
    "lora_bias: no bias to add to": "lora.lora_bias",
    "alora_invocation_tokens": "lora.alora_invocation_tokens",
}
"""Cases whose adapter is exported but not merged, and the key that the refusal names."""
OF_PEFT = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode",
}  # fmt: skip
"""Fields of every PEFT configuration; they say nothing about LoRA."""
REFUSED = {
    "arrow_config", "corda_config", "eva_config", "loftq_config", "lora_ga_config",
    "megatron_config", "megatron_core", "monteclora_config", "qalora_group_size", "runtime_config",
    "use_qalora",
}  # fmt: skip
"""Fields that a trial cannot use."""
BASES = [(tied, dtype) for tied in (False, True) for dtype in ("float32", "bfloat16")]
CASES = [(name, tied, dtype) for name in TRAINED for tied, dtype in BASES]


@dataclass
class Outcome:
    """What became of one case: losses in nats per token, and what was refused."""

    table: float = float("nan")
    before: float = float("nan")
    peft: float | str = "not measured"
    merged: float | str = "not measured"
    refusal: str = ""


def make_base(folder, tied):
    """A two-layer Qwen2 (its q, k and v have biases), with its tokenizer."""
    # The same weights in every run: how far a few steps go depends on them.
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    settings = model_config("qwen2", len(tokenizer)).to_dict()
    model = AutoModelForCausalLM.from_config(
        Qwen2Config(**{**settings, "tie_word_embeddings": tied, "initializer_range": 0.1})
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Trials(Material):
    """Trials of a few steps over the four bases."""

    def __init__(self, root):
        super().__init__(root)
        self.rows = write_rows(root / "few.jsonl", 40)
        self.bases = {tied: make_base(root / f"tied {tied}", tied) for tied in (False, True)}

    def case(self, lora, tied, dtype):
        return self.config(
            model={"name_or_path": str(self.bases[tied]), "dtype": dtype},
            data={"eval_fraction": 0.5},
            lora={"r": 4, "lora_dropout": 0.0, **QV, **lora},
            keep="last",
            training={
                "max_steps": 4,
                "eval_steps": 4,
                "logging_steps": 4,
                "learning_rate": 3e-2,
                "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 20,
                "eval_on_start": True,
                "save_strategy": "no",
            },
        )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    trials = Trials(tmp_path_factory.mktemp("fields"))
    found, exports, held_out = {}, [], None
    for name, tied, dtype in CASES:
        outcome = found[name, tied, dtype] = Outcome()
        config = trials.case(TRAINED[name], tied, dtype)
        folder, result = trials.train(config)
        if result.state != "complete":
            outcome.peft = f"{result.cause}"
            continue
        outcome.table, outcome.before = result.eval_loss, result.initial_eval_loss
        if held_out is None:
            held_out = prepare(config.data, load_tokenizer(config.model), model_family="qwen2").eval
        exports.append((outcome, "peft", Exported(folder.adapter, config, merged=False)))
        target = folder.path / "merged"
        target.mkdir()
        try:
            save_model(merged_model(config, folder.adapter), target)
        except ValueError as error:
            outcome.refusal = str(error)
            continue
        exports.append((outcome, "merged", Exported(target, config, merged=True)))
    losses = measure([export for _, _, export in exports], held_out)
    for (outcome, which, _), loss in zip(exports, losses, strict=True):
        setattr(outcome, which, loss if isinstance(loss, str) else loss[0])
    return found


@pytest.mark.parametrize(("name", "tied", "dtype"), CASES)
def test_table_peft_and_merged_model_agree(outcomes, name, tied, dtype):
    outcome = outcomes[name, tied, dtype]
    if name != "alora_invocation_tokens":
        assert abs(outcome.table - outcome.before) > 3 * TOLERANCE, "training has moved nothing"
    assert outcome.peft == pytest.approx(outcome.table, abs=TOLERANCE)
    if name in MERGE_REFUSED:
        assert MERGE_REFUSED[name] in outcome.refusal
    else:
        assert outcome.refusal == ""
        assert outcome.merged == pytest.approx(outcome.table, abs=TOLERANCE)


def test_every_field_is_tried_or_refused():
    known = {field.name for field in fields(LoraConfig)}
    tried = {name.partition(":")[0] for name in TRAINED}
    assert tried | OF_PEFT | REFUSED == known
    assert not tried & (OF_PEFT | REFUSED)


def test_the_page_lists_what_merges():
    page = (ROOT / "docs" / "export.md").read_text()
    table = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    listed = {row[0].strip("| `"): row[1].strip("| ") for row in table if len(row) == 2}
    expected = {
        name: f"refused: `{MERGE_REFUSED[name]}`" if name in MERGE_REFUSED else "merges"
        for name in TRAINED
    }
    assert {name: listed.get(name) for name in expected} == expected
