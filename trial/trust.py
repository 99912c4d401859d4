"""Code that a handed-over study or trial brings along, and the word that lets it run. Torch-free.

Three kinds of files that look like data run code once they are loaded: a model whose configuration
names Python files beside it (`auto_map`), a function that a configuration names, and DeepSpeed's
states in a checkpoint, which are pickles. Where a user writes `trust_remote_code: true` into a file
of his own and names that file on the command line, he has said so. Where a study or trial folder
says it, somebody else may have written it: `--trust-remote-code` on this command line is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from trial.config.objective_registry import is_user_function
from trial.config.trial_config import TrialConfig
from trial.store.folders import TrialFolder

FLAG = "--trust-remote-code"
HELP = "Run code that the study brings: its model's Python files, pickles in its checkpoints."
MODEL = "Python files that come with the model (`model.trust_remote_code`)"
PICKLES = "DeepSpeed's states in a checkpoint, which are pickles"


def kernel(name: str) -> str:
    """The code that an attention implementation of the hub (`owner/name`) is."""
    return f"a kernel of the hub (`model.attn_implementation: {name}`)"


def function(name: str) -> str:
    """The code that `package.module:function` names."""
    return f"the function {name}"


def code_of_model(config: TrialConfig) -> set[str]:
    """The code that loading a trial's model and tokenizer runs."""
    named = config.model.attn_implementation or ""
    kernels = {kernel(named)} if "/" in named else set()
    return ({MODEL} if config.model.trust_remote_code else set()) | kernels


def code_of_training(folder: TrialFolder, config: TrialConfig) -> set[str]:
    """The code that training a trial, or going on with it, runs."""
    names = {config.objective.name, *(config.evaluation.metrics or ())}
    found = code_of_model(config) | {function(name) for name in names if is_user_function(name)}
    return found | ({PICKLES} if any(_deepspeed_states(folder)) else set())


def _deepspeed_states(folder: TrialFolder) -> Iterator[object]:
    """What DeepSpeed has written into the trial's checkpoints."""
    yield from folder.checkpoints.glob("*/global_step*")


def refuse_code(where: object, code: Collection[str]) -> None:
    """Refuse to load what runs code.

    Raises:
        ValueError: there is some; says which, and the word that is missing.
    """
    if code:
        raise ValueError(
            f"{where}: this would run code: {'; '.join(sorted(code))}. If you trust who made it, "
            f"say {FLAG}; a study of your own goes on without it by `gaudi-sweep run FILE`"
        )
