"""What a process keeps between trials: imports, tokenizer, tokenised data, the base model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Any

from trial.config.errors import ConfigError, Problem
from trial.config.sections import ModelConfig
from trial.config.trial_config import TrialConfig
from trial.devices import detect, optimum_habana
from trial.devices.device import DEVICES, Device, apply_environment, select_device
from trial.devices.environment import ALWAYS, make_recipe_folder
from trial.distributed import rank_env
from trial.model.load import is_local, load_base, load_tokenizer, unload_restores_base
from trial.store.phase_timer import PhaseTimer
from trial.store.records import Seconds

if TYPE_CHECKING:
    from trial.data.prepare import PreparedData
    from trial.data.tokens import TokenDataset

logger = logging.getLogger(__name__)


class Warmth(Enum):
    """What a process has trained so far."""

    COLD = "cold"
    """No trial yet."""
    WARM = "warm"
    """A trial, after which the next one can be trained here."""
    SPENT = "spent"
    """A failure or a ZeRO-3 trial: use a new process for the next one."""


class ProcessCache:
    """Imports, one tokenizer, one data set and one base model, for one trial at a time."""

    def __init__(self, finish_imports: Callable[[str], float]) -> None:
        """`finish_imports` is `trial.preload.finish_imports`: device name -> seconds of imports."""
        self._finish_imports = finish_imports
        self.warmth = Warmth.COLD
        self._tokenizers: dict[str, Any] = {}
        self._prepared: dict[str, PreparedData] = {}
        self._base: Any | None = None
        self._base_key = ""
        self.uncharged_seconds = 0.0
        """Seconds of imports that no trial has been charged with."""
        self._device = ""

    @property
    def cold(self) -> bool:
        """Whether no trial has been trained in this process yet."""
        return self.warmth is Warmth.COLD

    @property
    def reusable(self) -> bool:
        """Whether another trial can be trained in this process."""
        return self.warmth is not Warmth.SPENT

    def mark_warm(self) -> None:
        """A trial has been loaded or trained."""
        if self.cold:
            self.warmth = Warmth.WARM

    def mark_spent(self) -> None:
        """Something has failed, or has changed a library for good."""
        self.warmth = Warmth.SPENT

    def start(self, config: TrialConfig) -> Device:
        """Set the environment, import the libraries and choose the trial's device.

        Raises:
            ValueError: this machine has no such device, or a variable has another value.
        """
        if is_local(config.model) and self.cold:
            # huggingface_hub reads it when it is imported.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        for name, value in ALWAYS.items():
            os.environ.setdefault(name, value)
        if detect.has_gaudi_software() and config.device in ("auto", "hpu"):
            # `select_device` loads torch and Habana's plugin, which read these variables.
            apply_environment(DEVICES["hpu"].environment(config))
            make_recipe_folder()
        device = select_device(config.device)
        self._device = device.name
        apply_environment(device.environment(config))
        if self.cold:
            # Imports made before the trial arrived are charged to it too.
            self.uncharged_seconds = self._finish_imports(device.name)
        if config.zero_stage is not None:
            rank_env.skip_deepspeed_shm_build(device.name)
        return device

    def tokenizer(self, config: TrialConfig) -> Any:
        """The tokenizer of the trial's model."""
        key = config.model.model_dump_json()
        if key not in self._tokenizers:
            self._tokenizers = {key: load_tokenizer(config.model)}
        return self._tokenizers[key]

    def prepared(self, config: TrialConfig, base: Any) -> PreparedData:
        """The trial's tokenised data, for its base model.

        Raises:
            ConfigError: the data cannot be read or tokenised, or has ids without an embedding.
        """
        from trial.data.prepare import prepare

        key = config.model.model_dump_json() + config.data.model_dump_json()
        if key not in self._prepared:
            tokenizer = self.tokenizer(config)
            data = prepare(config.data, tokenizer, model_family=base.config.model_type)
            _check_ids(data, tokenizer, _embeddings(base), config)
            self._prepared = {key: data}
        return self._prepared[key]

    def take_base(self, config: TrialConfig, device: Device) -> Any:
        """The base model, kept from the trial before or loaded; `give_back` returns it."""
        key = f"{device.name} {config.model.model_dump_json()}"
        base, self._base = self._base, None
        if base is not None and key == self._base_key and unload_restores_base(config):
            return _with_attention(base, config, device)
        del base
        attention = config.model.attn_implementation
        if attention == optimum_habana.FUSED_SDPA and device.name != "hpu":
            logger.warning("no effect on %s: attn_implementation %s", device.name, attention)
            attention = None
        fresh = self.load_base(config.model, attention)
        optimum_habana.add_missing_generation_flags(fresh)
        self._base_key = key
        return _with_attention(fresh, config, device)

    def load_base(self, model: ModelConfig, attention: str | None) -> Any:
        """Load a base model; see `trial.model.load`."""
        return load_base(model, attention)

    def give_back(self, model: Any, config: TrialConfig) -> None:
        """Unload the adapter and keep the base model, if that restores it bit for bit."""
        if model is not None and unload_restores_base(config):
            self._base = model.unload()

    def keep_base(self, base: Any) -> None:
        """Keep a base model without adapter, unchanged since `take_base`."""
        self._base = base

    def charge_import_time(self, clock: PhaseTimer) -> None:
        """Add the import seconds not charged yet to a trial's clock."""
        clock.restore(Seconds(startup=self.uncharged_seconds))
        self.uncharged_seconds = 0.0

    @contextmanager
    def use(self, config: TrialConfig) -> Iterator[None]:
        """Train one trial inside this context; an exception makes the process unusable.

        Raises:
            RuntimeError: the process is not `reusable`.
        """
        if not self.reusable:
            raise RuntimeError("this process is spent: start a fresh one for the next trial")
        try:
            with rank_env.rank_variables(deepspeed=config.zero_stage is not None):
                yield
        except BaseException:
            self.mark_spent()
            raise
        self.mark_warm()
        # ZeRO-3 leaks one whole model, whatever is destroyed.
        if config.zero_stage == 3 or self._patches_checkpointing(config):
            self.mark_spent()

    def _patches_checkpointing(self, config: TrialConfig) -> bool:
        """Whether GaudiTrainer replaces torch's checkpointing in this process for good."""
        return bool(config.training.get("gradient_checkpointing")) and self._device == "hpu"


def _with_attention(base: Any, config: TrialConfig, device: Device) -> Any:
    """Turn fused attention on, on a Gaudi and if the trial asks for it; returns the base model."""
    if device.name == "hpu":
        optimum_habana.enable_fused_attention(base, config)
    return base


def _embeddings(base: Any) -> int:
    """Number of the model's input embeddings; ZeRO stage 3 keeps the whole shape aside."""
    weight = base.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _check_ids(data: PreparedData, tokenizer: Any, size: int, config: TrialConfig) -> None:
    """Refuse ids at or beyond the number of embeddings, which no forward pass can look up.

    Raises:
        ConfigError: there are some.
    """
    pad = data.train.pad_id
    largest = max(pad, *(int(found.tokens.ids.max(initial=0)) for found in _datasets(data)))
    if largest < size:
        return
    token = tokenizer.convert_ids_to_tokens(largest)
    what = "pad token" if largest == pad else "token"
    rule = f"a tokenizer for this model, which has {size} embeddings"
    tokenizer_key = "model.tokenizer_name_or_path"
    key = tokenizer_key if config.model.tokenizer_name_or_path else "model.name_or_path"
    raise ConfigError([Problem(key, rule, f"id {largest} of the {what} {token!r}")])


def _datasets(data: PreparedData) -> Iterator[TokenDataset]:
    yield from (data.train, data.eval)
    if data.unlearning is not None:
        yield from (data.unlearning.forget, data.unlearning.alternatives)
