"""Measurements of packed jobs: passes, refills of slots, recompilations, the output layer.

python tests/bench/ours/packed.py refill HOME       trains the folders of HOME in four slots
python tests/bench/ours/packed.py compile           20 refills under torch.compile
python tests/bench/ours/packed.py passes HOME       passes in 1 to 16 slots, launched and recorded
python tests/bench/ours/packed.py head whole|pieces      a pass over many words, K = 8
python tests/bench/ours/packed.py products          frozen weights on a CPU, by library
python tests/bench/ours/packed.py model SIZE FOLDER      writes a Llama of random weights

Compiled by dynamo and AOT autograd, without a code generator: what is compiled again depends on the
first two, and a recompilation is made an error once the first step is done.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from peers.material import MODEL, RANKS

SLOTS, REFILLS = 4, 20
DROPOUTS = (0.0, 0.05, 0.1)
STEPS = 3
"""Steps between two refills."""
COLUMNS = 64


def refill(home: Path) -> dict[str, float]:
    """Seconds from a free slot to a trial in it, of the trials that found the job running."""
    import torch

    from trial.packed.job import train_packed
    from trial.store.folders import TrialFolder

    torch.set_num_threads(1)
    folders = [TrialFolder(path) for path in sorted((home / "trials").iterdir())]
    train_packed(folders, slots=SLOTS)
    results = [result for folder in folders if (result := folder.read_result())]
    seconds = [result.seconds.load for result in results[SLOTS:]]
    return {
        "refills": len(seconds),
        "refill_seconds": statistics.median(seconds),
        "longest_refill_seconds": max(seconds),
    }


def compiled() -> dict[str, float]:
    """Refill slots with other ranks, dropouts, rates and seeds; any recompilation ends the run."""
    import torch

    from trial.config.trial_config import parse
    from trial.multi_lora.adamw import StepSettings
    from trial.multi_lora.adapter_init import AdapterInitializer
    from trial.multi_lora.engine import Engine
    from trial.preload import finish_imports
    from trial.store.folders import TrialFolder
    from trial.training.arguments import build_arguments, tracker_labels, training_keywords
    from trial.training.process_cache import ProcessCache

    torch.set_num_threads(1)
    draw = random.Random(0)

    def config(number: int) -> Any:
        rank = RANKS[number % len(RANKS)]
        lora = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": draw.choice(DROPOUTS)}
        return parse({"lora": lora, "training": {"seed": number}, "device": "cpu"})

    first, cache = config(3), ProcessCache(finish_imports)
    device = cache.start(first)
    base = cache.take_base(first, device)
    initializer = AdapterInitializer(base)
    keywords = training_keywords(first, device, TrialFolder(tempfile.mkdtemp()))
    arguments = build_arguments(keywords, device, tracker_labels(first))
    engine = Engine(base, device, arguments, initializer.create(first), SLOTS, max(RANKS))
    base.forward = torch.compile(base.forward, backend="aot_eager")
    rates = [1e-3] * SLOTS
    for slot in range(SLOTS):
        engine.load(slot, initializer.create(config(slot)), 0.05 if slot == 0 else 0.0)
    step(engine, rates, StepSettings)
    counted = graphs()
    torch._dynamo.config.error_on_recompile = True
    seconds = []
    for number in range(REFILLS):
        slot, fresh = number % SLOTS, config(SLOTS + number)
        began = time.perf_counter()
        engine.load(slot, initializer.create(fresh), fresh.lora.lora_dropout)
        seconds.append(time.perf_counter() - began)
        rates[slot] = 10 ** draw.uniform(-4, -2)
        for _ in range(STEPS):
            step(engine, rates, StepSettings)
    return {
        "refills": REFILLS,
        "recompilations": graphs() - counted,
        "graphs": counted,
        "refill_seconds_compiled": statistics.median(seconds),
    }


PASSED = (1, 2, 4, 8, 16)
TIMED = 6
"""Passes of which the middle one counts."""


def passes(home: Path) -> dict[str, float]:
    """Seconds of a pass, forward and backward, launched and replayed, and of an optimizer step."""
    import torch

    from trial.packed.setup import open_setup
    from trial.preload import finish_imports
    from trial.store.folders import TrialFolder
    from trial.training.process_cache import ProcessCache

    torch.set_num_threads(1)
    folder, cache = TrialFolder(next((home / "trials").iterdir())), ProcessCache(finish_imports)
    measured = {}
    for slots in PASSED:
        setup = open_setup(cache, folder.read_config(), folder, slots, slots)
        measured |= {f"{name}_K={slots}": value for name, value in times(setup, folder).items()}
        setup.close()
    return measured


def times(setup: Any, folder: Any) -> dict[str, float]:
    """The same in all slots of one engine."""
    from trial.multi_lora.adamw import StepSettings
    from trial.multi_lora.engine import MicroBatch

    config, engine, slots = folder.read_config(), setup.engine, range(setup.slots)
    batch = config.training["per_device_train_batch_size"]
    rows = [setup.data.train[row] for row in range(batch)]
    batches = [MicroBatch(slot, rows, list(range(batch)), COLUMNS) for slot in slots]
    settings = [StepSettings(1, 1e-4, 0.0, (0.9, 0.999), 1e-6, 1.0)] * setup.slots

    def timed(act: Any) -> float:
        seconds = []
        for _ in range(TIMED):
            setup.device.synchronise()
            began = time.perf_counter()
            act()
            setup.device.synchronise()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[TIMED // 2 :])

    for slot in slots:
        engine.load(slot, setup.initializer.create(config), config.lora.lora_dropout)
    measured = {}
    if engine.may_hold_graphs:
        measured["recorded_pass_seconds"] = timed(lambda: engine.accumulate(batches))
        engine.drop_graphs()
    measured["pass_seconds"] = timed(lambda: engine.accumulate(batches))
    return measured | {"step_seconds": timed(lambda: engine.step(settings))}


def heads(how: str) -> dict[str, float]:
    """A pass over a Llama of a usual vocabulary: its logits whole, or a piece at a time.

    Tiny on a CPU, of half a billion parameters on a GPU.
    """
    import torch
    from peers.material import Work

    from ours.folders import folders_of
    from trial.devices.device import select_device
    from trial.multi_lora.engine import Engine, EngineSettings, MicroBatch
    from trial.packed.setup import open_setup
    from trial.preload import finish_imports
    from trial.store.folders import TrialFolder
    from trial.training.process_cache import ProcessCache

    torch.set_num_threads(1)
    device, measured, slots = select_device("auto"), {}, 8
    size, batch, length = ("words", 2, 128) if device.name == "cpu" else ("0.5b-words", 1, 512)
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        write_model(size, model)
        work = Work(trials=1, batch=batch, length=length, model=str(model), device=device.name)
        folder = TrialFolder(folders_of(work, Path(place))[0])
        settings = EngineSettings(chunked_loss=how != "whole")
        setup = open_setup(
            ProcessCache(finish_imports), folder.read_config(), folder, slots, slots,
            make_engine=partial(Engine, settings=settings),
        )  # fmt: skip
        for slot in range(slots):
            setup.engine.load(slot, setup.initializer.create(folder.read_config()), 0.0)
        rows = [dict(setup.data.train[row]) for row in range(batch)]
        batches = [MicroBatch(slot, rows, list(range(batch)), COLUMNS) for slot in range(slots)]
        device.reset_peak()
        before = device.read_peak()
        for masked in (0, length // 2):
            for row in rows:
                row["labels"] = row["labels"].clone()
                row["labels"][:masked] = -100
            seconds = []
            for _ in range(TIMED):
                device.synchronise()
                began = time.perf_counter()
                setup.engine.accumulate(batches)
                device.synchronise()
                seconds.append(time.perf_counter() - began)
            middle = statistics.median(seconds[TIMED // 2 :])
            measured[f"ms_per_trial_{masked}_masked"] = 1e3 * middle / slots
            if not masked:
                measured["megabytes"] = (device.read_peak() - before) / 2**20
    return measured


def products() -> dict[str, float]:
    """Billions of operations a second on one core, in float32, by either of torch's libraries."""
    import torch

    from trial.multi_lora import onednn_linear

    torch.set_num_threads(1)
    measured = {}
    for inside, out in ((128, 128), (128, 352), (352, 128), (512, 1408)):
        x, weight = torch.randn(2048, inside), torch.randn(out, inside)
        for name, positions in (("torch", 0), ("oneDNN", len(x))):
            seconds = []
            with onednn_linear.recurring_shape(positions):
                for _ in range(TIMED * 10):
                    began = time.perf_counter()
                    onednn_linear.linear(x, weight, None)
                    seconds.append(time.perf_counter() - began)
            speed = 2e-9 * x.numel() * out / statistics.median(seconds)
            measured[f"{name}_2048x{inside}x{out}"] = round(speed, 1)
    return measured


def graphs() -> int:
    """Graphs that dynamo has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def step(engine: Any, rates: list[float], settings: Any) -> None:
    """One optimizer step of every slot, on rows of one length."""
    import torch

    from trial.multi_lora.engine import MicroBatch

    ids = torch.randint(3, 2000, (COLUMNS,))
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    engine.accumulate([MicroBatch(slot, [row], [slot], COLUMNS - 1) for slot in range(SLOTS)])
    engine.step([settings(1, rate, 0.0, (0.9, 0.999), 1e-6, 1.0) for rate in rates])


SIZES = {
    "words": (128, 352, 4, 4, 32000),
    "512": (512, 1408, 8, 8, 2048),
    "0.5b": (1024, 4096, 24, 16, 32000),
    "0.5b-words": (1024, 4096, 24, 16, 128256),
    "7b": (4096, 11008, 32, 32, 32000),
}
"""Hidden and intermediate size, layers, heads, vocabulary."""


def write_model(size: str, folder: Path) -> dict[str, float]:
    """A Llama of random weights with the tiny model's tokenizer; the large ones in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden, intermediate, layers, heads, tokens = SIZES[size]
    settings = json.loads((MODEL / "config.json").read_text())
    settings |= {"hidden_size": hidden, "intermediate_size": intermediate, "vocab_size": tokens}
    settings |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    settings |= {"num_hidden_layers": layers, "head_dim": hidden // heads}
    settings |= {"max_position_embeddings": 4096}
    if hidden > 512:
        torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(folder)
    for file in MODEL.glob("*token*"):
        shutil.copy(file, folder)
    return {}


def main(how: str, *words: str) -> None:
    try:
        if how == "refill":
            measured = refill(Path(words[0]))
        elif how == "compile":
            measured = compiled()
        elif how == "head":
            measured = heads(words[0])
        elif how == "products":
            measured = products()
        elif how == "passes":
            measured = passes(Path(words[0]))
        else:
            measured = write_model(words[0], Path(words[1]))
    except ImportError as error:
        if not str(error.name).startswith("trial.packed"):
            raise
        measured = {"not_measured": f"there is no packed engine yet ({error})"}
    print(json.dumps(measured))


if __name__ == "__main__":
    main(*sys.argv[1:])
