"""What stays warm in a process between trials, and the proof that nothing else does."""

from __future__ import annotations

import gc
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trial import gaudi, ranks
from trial.clock import Clock
from trial.config import TrialConfig
from trial.devices import DEVICES, Device, apply_environment, pick
from trial.folder import Seconds
from trial.launch import ALWAYS, make_recipe_folder
from trial.model import is_local, leaves_base_as_it_was, load_base, load_tokenizer

if TYPE_CHECKING:
    from trial.data import Prepared

UNUSED = ("datasets", "scipy", "sklearn")
"""Where they are installed, transformers imports them for classes that no trial makes."""

logger = logging.getLogger(__name__)
_import_seconds: list[float] = []
"""Spent on imports and not yet charged to a trial."""


class Workbench:
    """A process's imports, tokenizers, data and one base model, lent to one trial at a time.

    `reusable` turns False for good after a failure or a ZeRO-3 trial: start a fresh process then.
    """

    def __init__(self) -> None:
        self.reusable = True
        self.cold = True
        self._tokenizers: dict[str, Any] = {}
        self._prepared: dict[str, Prepared] = {}
        self._base: Any | None = None
        self._base_key = ""
        self.unpaid_seconds = 0.0
        self._device = ""

    def start(self, config: TrialConfig) -> Device:
        """Import everything and start the trial's device."""
        if is_local(config.model) and self.cold:
            # Read once, when the hub's client is imported.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        for name, value in ALWAYS.items():
            os.environ.setdefault(name, value)
        if gaudi.on_device() and config.device in ("auto", "hpu"):
            # Looking for the device loads torch already, and Habana's plugin with it.
            apply_environment(DEVICES["hpu"].environment(config))
            make_recipe_folder()
        device = pick(config.device)
        self._device = device.name
        apply_environment(device.environment(config))
        if self.cold:
            # What was imported while nobody waited is this trial's to pay all the same.
            self.unpaid_seconds = sum(_import_seconds)
            preload(device.name)
            _import_seconds.clear()
        if config.zero_stage is not None:
            ranks.without_compiled_operators(device.name)
        return device

    def tokenizer(self, config: TrialConfig) -> Any:
        """The tokenizer of the trial's model."""
        key = config.model.model_dump_json()
        if key not in self._tokenizers:
            self._tokenizers = {key: load_tokenizer(config.model)}
        return self._tokenizers[key]

    def prepared(self, config: TrialConfig, model_family: str) -> Prepared:
        """The trial's data as tokens."""
        from trial.data import prepare

        key = config.model.model_dump_json() + config.data.model_dump_json()
        if key not in self._prepared:
            tokenizer = self.tokenizer(config)
            self._prepared = {key: prepare(config.data, tokenizer, model_family=model_family)}
        return self._prepared[key]

    def take_base(self, config: TrialConfig, device: Device) -> Any:
        """The base model, fresh or as the last trial left it: both the same to the bit."""
        key = f"{device.name} {config.model.model_dump_json()}"
        base, self._base = self._base, None
        if base is not None and key == self._base_key and leaves_base_as_it_was(config):
            return _with_attention(base, config, device)
        del base
        attention = config.model.attn_implementation
        if attention == gaudi.FUSED and device.name != "hpu":
            logger.warning("no effect on %s: attn_implementation %s", device.name, attention)
            attention = None
        fresh = load_base(config.model, attention)
        gaudi.mend_model(fresh)
        self._base_key = key
        return _with_attention(fresh, config, device)

    def give_back(self, model: Any, config: TrialConfig) -> None:
        """Take the adapter off the base model and keep it, where that leaves no trace."""
        if model is not None and leaves_base_as_it_was(config):
            self._base = model.unload()

    def keep_base(self, base: Any) -> None:
        """Take back a base model that nothing has been done to."""
        self._base = base

    def pay(self, clock: Clock) -> None:
        """Charge imports that nobody has paid for yet."""
        clock.restore(Seconds(startup=self.unpaid_seconds))
        self.unpaid_seconds = 0.0

    @contextmanager
    def lent(self, config: TrialConfig) -> Iterator[None]:
        """One trial's use of the process.

        Raises:
            RuntimeError: the process is not fit for another trial.
        """
        if not self.reusable:
            raise RuntimeError("this process is spent: start a fresh one for the next trial")
        try:
            with ranks.environment(deepspeed=config.zero_stage is not None):
                yield
        except BaseException:
            self.reusable = False
            raise
        self.cold = False
        # ZeRO-3 leaves one whole model behind, whatever is destroyed.
        if config.zero_stage == 3 or self._patched_for_good(config):
            self.reusable = False

    def _patched_for_good(self, config: TrialConfig) -> bool:
        """Whether GaudiTrainer has replaced torch's checkpointing in this process."""
        return bool(config.training.get("gradient_checkpointing")) and self._device == "hpu"


def _with_attention(base: Any, config: TrialConfig, device: Device) -> Any:
    """The base model with fused attention as this trial wants it."""
    if device.name == "hpu":
        gaudi.fuse_attention(base, config)
    return base


@cache
def preload(device: str) -> None:
    """Import all that a trial on `device` imports, without touching the device.

    For a process that waits for its first trial; what `trial.launch.environment` says must be set.
    """
    began = time.perf_counter()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with _no_collection():
        _import_all(DEVICES[device])
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    _import_seconds.append(time.perf_counter() - began)


def forgive_imports() -> None:
    """Charge no trial with the imports made so far."""
    _import_seconds.clear()


def _import_all(device: Device) -> None:
    _spare_unused()
    import peft  # noqa: F401
    import transformers

    # Their information is for people who run one training by hand.
    transformers.logging.set_verbosity_error()
    device.trainer_class()
    device.arguments_class()
    # The trainer imports it in any case, in the middle of its first trial.
    import deepspeed  # noqa: F401

    import trial.attempt  # noqa: F401


@contextmanager
def _no_collection() -> Iterator[None]:
    """Modules stay for good: looking for garbage among them takes a fifth of their import.

    Later collections are spared them as well: trainers collect several times a trial.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def _spare_unused() -> None:
    """Keep transformers from importing what no trial uses of it; trials may still import it."""
    from transformers.utils import import_utils

    if scan := getattr(import_utils, "create_import_structure_from_path", None):
        # It has just read all its models for their folder, and would again for the file in it.
        import_utils.create_import_structure_from_path = lambda path: scan(
            Path(path).parent if Path(path).name == "__init__.py" else path
        )
    for name in UNUSED:
        setattr(import_utils, f"_{name}_available", False)
