"""Trial configurations whose memory is estimated."""

from typing import Any

from trial.config.trial_config import TrialConfig, parse


def trial(**sections: Any) -> TrialConfig:
    """A trial on a Gaudi."""
    return parse({"device": "hpu", **sections})


def llama_trial(rows: int = 8, length: int = 512, **training: Any) -> TrialConfig:
    """A LoRA trial in bfloat16 for a Llama model, `rows` of `length` tokens at once."""
    return trial(
        model={"dtype": "bfloat16"},
        data={"max_length": length},
        lora={"r": 8, "target_modules": ["q_proj", "v_proj"]},
        training={"bf16": True, "per_device_train_batch_size": rows, **training},
    )
