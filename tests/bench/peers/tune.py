"""The same sweep by Ray Tune, OptunaSearch and Hugging Face's Trainer; run by the peers' Python.

python tests/bench/peers/tune.py FOLDER WORK [--reuse]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from material import RANKS, RATES, Work, encode, lora_settings, trainer_settings


def train(config: dict[str, Any]) -> None:
    """One trial, as a user of Ray Tune writes it."""
    from peft import LoraConfig, get_peft_model
    from ray import tune
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    class Report(TrainerCallback):
        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
        ) -> None:
            tune.report({"eval_loss": metrics["eval_loss"], "step": state.global_step})

    work, folder = Work.parse(config["work"]), Path(config["folder"])
    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    base = AutoModelForCausalLM.from_pretrained(work.model, torch_dtype="float32")
    base.config.use_cache = False
    rank = config["r"]
    lora = LoraConfig(**lora_settings(rank))
    arguments = TrainingArguments(
        output_dir="out",
        **trainer_settings(work, config["learning_rate"]),
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=get_peft_model(base, lora),
        args=arguments,
        data_collator=default_data_collator,
        train_dataset=encode(tokenizer, folder / "train.jsonl", work.length),
        eval_dataset=encode(tokenizer, folder / "eval.jsonl", work.length),
        callbacks=[Report()],
    )
    trainer.train()
    trainer.save_model("adapter")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("work")
    parser.add_argument("--reuse", action="store_true")
    asked = parser.parse_args()
    work = Work.parse(asked.work)
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={
            "r": tune.choice(list(RANKS)),
            "learning_rate": tune.loguniform(*RATES),
            "work": asked.work,
            "folder": str(asked.folder),
        },
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(seed=0),
            num_samples=work.trials,
            max_concurrent_trials=2,
            metric="eval_loss",
            mode="min",
            reuse_actors=asked.reuse,
        ),
        run_config=tune.RunConfig(storage_path=str(asked.folder / "tune"), verbose=0),
    )
    found = tuner.fit()
    done = [result for result in found if result.metrics.get("step") == work.steps]
    best = found.get_best_result().metrics["eval_loss"]
    print(json.dumps({"trials": len(done), "best": best}))


if __name__ == "__main__":
    main()
