"""Generates text with trained trials for a few fixed prompts: the first rows of the held-out set.

    python -m trial.sample [--trust-remote-code] runs/x/trials/00003 runs/x/trials/00007

Writes `samples.jsonl` (prompt, completion, reference) into each folder that has weights, unless it
is there already. Greedy decoding, so that only the weights differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from trial import trust
from trial.config.trial_config import TrialConfig
from trial.store.files import write_atomically
from trial.store.folders import TrialFolder

COUNT = 4
"""Number of prompts."""

NEW_TOKENS = 48
"""Maximum number of tokens of a completion."""

TEXT_TOKENS = 8
"""A row without a prompt and with more tokens than this is text to be continued."""


def needs_sampling(folder: TrialFolder) -> bool:
    """Whether the trial has weights and no samples yet.

    Raises:
        OSError, ValueError: its configuration cannot be read.
    """
    return not folder.samples.exists() and _weights(folder, folder.read_config()).exists()


def _weights(folder: TrialFolder, config: TrialConfig) -> Path:
    return folder.adapter if config.lora.r else folder.model


def sample(folder: TrialFolder, trusted: bool = False) -> Path | None:
    """Write the trial's samples and return the file; None if the trial has no weights.

    Raises:
        ValueError: the weights are not as the trial wrote them, or loading the model would run its
            code and it is not `trusted`.
    """
    config = folder.read_config()
    if folder.samples.exists():
        return folder.samples
    if not _weights(folder, config).exists():
        return None
    folder.refuse_damaged_weights()
    if not trusted:
        trust.refuse_code(folder.path, trust.code_of_model(config))
    from trial.data.prepare import prepare
    from trial.devices.device import select_device
    from trial.model.load import load_tokenizer
    from trial.preload import preload

    # Off a Gaudi, optimum-habana can only be imported in the way that `preload` does it.
    preload(select_device(config.device).name)
    tokenizer, model = load_tokenizer(config.model), _load(folder, config)
    family = model.config.model_type
    held_out = prepare(config.data, tokenizer, model_family=family).eval
    rows = (held_out.prompt_and_answer(row) for row in range(min(COUNT, len(held_out))))
    lines = [_complete(model, tokenizer, *row) for row in rows]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(folder.samples, text)
    return folder.samples


def _load(folder: TrialFolder, config: TrialConfig) -> Any:
    """The trained model in eval mode."""
    from transformers import AutoModelForCausalLM

    from trial.model.load import load_base

    if not config.lora.r:
        # Without the argument, transformers would ask the terminal.
        model = config.model
        return AutoModelForCausalLM.from_pretrained(
            str(folder.model), trust_remote_code=model.trust_remote_code
        ).eval()
    from peft import PeftModel

    base = load_base(config.model, config.model.attn_implementation)
    return PeftModel.from_pretrained(base, str(folder.adapter)).eval()


def _complete(model: Any, tokenizer: Any, prompt: list[int], answer: list[int]) -> dict[str, str]:
    """One line of `samples.jsonl`: prompt, greedy completion and the completion in the data.

    The prompt ends where the answer's first token begins in training. A row of text alone has no
    prompt: its first half is one.
    """
    import torch

    if len(prompt) < 2 and len(answer) > TEXT_TOKENS:
        half = len(answer) // 2
        prompt, answer = prompt + answer[:half], answer[half:]
    inputs = torch.tensor([prompt])
    pad = tokenizer.pad_token_id
    with torch.inference_mode():
        output = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        )
    return {
        "prompt": tokenizer.decode(prompt, skip_special_tokens=True),
        "completion": tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True),
        "reference": tokenizer.decode(answer, skip_special_tokens=True),
    }


def main(paths: list[str]) -> int:
    """Sample from every folder named; returns exit code 0, or 1 if one of them failed."""
    failed, trusted = 0, trust.FLAG in paths
    for path in (path for path in paths if path != trust.FLAG):
        try:
            sample(TrialFolder(path), trusted)
        except (OSError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
