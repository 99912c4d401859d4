"""Each trial by GaudiTrainer in a script of its own, without a harness; run by the peers' Python.

python tests/bench/peers/gaudi.py FOLDER WORK TRIALS

Starts itself anew for each trial. What GaudiTrainer needs off the device is mended in the cheapest
way there is: `optimum.habana` is entered without its own start (diffusion, `pip list`).
"""

from __future__ import annotations

import importlib.machinery
import json
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

from material import Work, encode, lora_settings, points, trainer_settings

FLAGS = (
    "attn_softmax_bf16",
    "use_flash_attention",
    "flash_attention_recompute",
    "flash_attention_causal_mask",
)


def gaudi() -> Any:
    """The module of GaudiTrainer, on a machine without a Gaudi."""
    import optimum

    root = next(Path(path, "habana") for path in optimum.__path__ if Path(path, "habana").is_dir())
    package = types.ModuleType("optimum.habana")
    package.__path__ = [str(root)]
    package.__spec__ = importlib.machinery.ModuleSpec("optimum.habana", None, is_package=True)
    sys.modules["optimum.habana"] = package
    optimum.habana = package
    from optimum.habana.transformers import trainer

    trainer.get_hpu_memory_stats = lambda device=None: {}
    return trainer


def train(folder: Path, work: Work, number: int) -> None:
    """One trial from imports to the saved adapter."""
    trainer_module = gaudi()
    from optimum.habana.transformers import GaudiConfig, GaudiTrainingArguments
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator, set_seed

    rank, rate = points(number + 1)[number]
    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    base = AutoModelForCausalLM.from_pretrained(work.model, torch_dtype="float32")
    base.config.use_cache = False
    for name in FLAGS:
        setattr(base.generation_config, name, False)
    lora = LoraConfig(**lora_settings(rank))
    arguments = GaudiTrainingArguments(
        output_dir=str(folder / f"out-{number}"),
        use_habana=False,
        use_cpu=True,
        use_lazy_mode=False,
        **trainer_settings(work, rate),
        dataloader_pin_memory=False,
    )
    trainer = trainer_module.GaudiTrainer(
        model=get_peft_model(base, lora),
        gaudi_config=GaudiConfig(),
        args=arguments,
        data_collator=default_data_collator,
        train_dataset=encode(tokenizer, folder / "train.jsonl", work.length),
        eval_dataset=encode(tokenizer, folder / "eval.jsonl", work.length),
    )
    trainer.train()
    trainer.save_model(str(folder / f"adapter-{number}"))


def main() -> None:
    folder, work, what = Path(sys.argv[1]), Work.parse(sys.argv[2]), sys.argv[3]
    if what.startswith("trial-"):
        train(folder, work, int(what.removeprefix("trial-")))
        return
    began = time.perf_counter()
    for number in range(int(what)):
        command = [sys.executable, __file__, *sys.argv[1:3], f"trial-{number}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(json.dumps({"seconds_inside": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
