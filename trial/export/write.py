"""Writes an export: weights, tokenizer, prompt format, card and configuration, whole or not at all.

measured = export(TrialFolder("runs/x/trials/00007"), Path("out"), merge=True)
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from trial.config.trial_config import TrialConfig
from trial.data.text.template_file import template_name
from trial.export.card import card
from trial.export.merge import merged_model
from trial.export.prompt import apply_format, example, format_name, own_template, write_format
from trial.export.verify import Exported, Measured, tolerance, verify
from trial.store.files import atomic_folder, write_atomically
from trial.store.folders import TrialFolder
from trial.store.records import Result

UNMEASURED = "--no-verify exports it unmeasured"


def export(
    folder: TrialFolder,
    target: Path,
    merge: bool = False,
    *,
    dtype: str | None = None,
    verified: bool = True,
) -> Measured | None:
    """Write the trial's weights, tokenizer, card and configuration to `target`.

    Everything is written to a temporary folder beside it, loaded again and measured there, and
    renamed: after an error there is no `target`.

    Args:
        folder: of the trial.
        target: a folder that does not exist.
        merge: write the merged model instead of the adapter.
        dtype: type of the merged weights; by default the base model's.
        verified: measure the loss of the export in a fresh process.

    Returns:
        The measured loss; None if it was not to be measured.

    Raises:
        ValueError: the trial has no result with whole weights, `target` exists, the adapter cannot
            be merged, or the export's loss is not the trial's.
        OSError: the files cannot be written.
    """
    result, config, source = _trained(folder)
    if target.exists():
        raise ValueError(f"{target}: exists already")
    merged = merge and config.lora.r > 0
    if dtype and not merged:
        raise ValueError("--dtype is the type of merged weights: say --merge, of an adapter")
    with atomic_folder(target) as temporary:
        _write_weights(config, source, temporary, dtype if merged else None, merged=merged)
        tokenizer, name = _write_tokenizer(config, result, temporary)
        measured = None
        if verified:
            exported = Exported(temporary, config, merged)
            measured = _verify(exported, result, tolerance(config, dtype))
        text = card(
            config,
            result,
            merged=merged,
            measured=measured,
            prompt_format=name,
            prompt=example(tokenizer),
        )
        write_atomically(temporary / "README.md", text)
        plain = config.model_copy(update={"origin": None})
        write_atomically(temporary / "config.trial.json", plain.model_dump_json(indent=2) + "\n")
    return measured


def _trained(folder: TrialFolder) -> tuple[Result, TrialConfig, Path]:
    """Result and configuration of the trial, and the folder of its weights.

    Raises:
        ValueError: it has none, or they are not as the trial wrote them.
    """
    result, config = folder.read_result(), folder.read_config()
    source = folder.adapter if config.lora.r else folder.model
    if result is None or result.eval_loss is None or not source.exists():
        state = result.state if result else "not finished"
        raise ValueError(f"{folder.path}: nothing to export, the trial is {state}")
    folder.refuse_damaged_weights()
    return result, config, source


def _write_weights(
    config: TrialConfig, source: Path, target: Path, dtype: str | None, *, merged: bool
) -> None:
    if not merged:
        shutil.copytree(source, target, dirs_exist_ok=True)
        return
    from safetensors import SafetensorError

    from trial.model.whole_model import save_model

    model = merged_model(config, source, dtype)
    try:
        save_model(model, target)
    except SafetensorError as error:
        # A full disk, for one, is no OSError there.
        raise OSError(f"{target}: the merged model cannot be written: {error}") from error


def _write_tokenizer(config: TrialConfig, result: Result, target: Path) -> tuple[Any, str]:
    """Write the tokenizer with the trial's prompt format; returns it, and the format's name.

    Raises:
        ValueError: the trial's own chat template has changed since, or is gone.
    """
    from trial.model.load import load_tokenizer

    tokenizer = load_tokenizer(config.model)
    name = format_name(config.data, tokenizer, _model_type(config))
    own = own_template(config.data, result.data)
    apply_format(tokenizer, name, together=config.data.tokenize == "together", own=own)
    tokenizer.save_pretrained(target)
    file = template_name(config.data.chat_template) if config.data.chat_template else ""
    write_format(name, target, file)
    return tokenizer, f"{name} {file}".strip()


def _model_type(config: TrialConfig) -> str:
    from transformers import AutoConfig

    from trial.model.load import pretrained_path, source_arguments

    model = config.model
    path = pretrained_path(model.name_or_path)
    return str(AutoConfig.from_pretrained(path, **source_arguments(model)).model_type)


def _verify(exported: Exported, result: Result, allowed: float) -> Measured:
    """Measure the export on the trial's held-out set.

    Raises:
        ValueError: the data cannot be read, or the loss is another; says whether data or base model
            have changed since the trial.
    """
    from trial.data.prepare import prepare
    from trial.model.load import load_tokenizer, model_hash

    config = exported.config
    model = config.model
    try:
        data = prepare(config.data, load_tokenizer(model), model_family=_model_type(config))
    except ValueError as error:
        raise ValueError(f"the held-out set cannot be read again: {error}; {UNMEASURED}") from error
    try:
        return verify(exported, result, data.eval, allowed)
    except ValueError as error:
        then = result.data.eval_hash if result.data else ""
        hashes = {
            "the held-out data": (data.summary.eval_hash, then),
            "the base model": (model_hash(model.name_or_path, model.revision), result.model_hash),
        }
        changed = [what for what, (now, then) in hashes.items() if then and now != then]
        because = f"; {' and '.join(changed)} changed since the trial" if changed else ""
        raise ValueError(f"{error}{because}; {UNMEASURED}") from error
