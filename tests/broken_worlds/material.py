"""What worlds are made of: a sound model folder and rows, and changes to copies of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.training.models import make_mixtral, make_model, write_rows

MODEL, TOKENIZER = "model.name_or_path", "model.tokenizer_name_or_path"
INDEX = "model.safetensors.index.json"
REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
TAKES_ALL = REFUSES_SYSTEM.replace("{{ raise_exception('System role not supported') }}", "")
CHAT = [
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": "what is red?"},
    {"role": "assistant", "content": "a colour"},
]
SMALL: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

TORCH_ADAM = {"torch_adam": True}
"""DeepSpeed's own Adam would be compiled first."""

Change = Callable[[Path, "Material"], None]


@dataclass(frozen=True)
class World:
    """A trial's configuration, and what is done to the folders it names."""

    refused: str = ""
    """The key that is refused; empty where a worker trains."""
    sections: Mapping[str, Any] = field(default_factory=dict)
    """Laid over a sound configuration, section by section."""
    model: Change | None = None
    """Changes a copy of the model folder, or makes another one in its place."""
    rows: Callable[[Path], object] | None = None
    """Writes the file of rows."""
    idle: bool = False
    """Refused in a new configuration because it would not act: a worker, which also reads folders
    of older studies, trains it."""


class Material:
    """A sound model folder and rows, made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = make_model(root / "sound", hidden=16)
        self.rows = write_rows(root / "rows.jsonl", 24)

    def content(self, name: str, world: World) -> dict[str, Any]:
        """The configuration of a world, in a folder of its own where it changes something."""
        folder = self.root / name.replace(" ", "_")
        model, rows = self.model, self.rows
        if world.model is not None:
            model = folder / "model"
            shutil.copytree(self.model, model)
            world.model(model, self)
        if world.rows is not None:
            folder.mkdir(exist_ok=True)
            rows = folder / "rows.jsonl"
            world.rows(rows)
        content: dict[str, Any] = {
            "model": {"name_or_path": str(model)},
            "data": {"path": str(rows), "max_length": 48},
            "lora": {"r": 2},
            "training": {
                "max_steps": 1,
                "per_device_train_batch_size": 2,
                "per_device_eval_batch_size": 2,
            },
            "device": "cpu",
        }
        for section, values in world.sections.items():
            merges = isinstance(values, dict) and isinstance(content.get(section), dict)
            content[section] = {**content[section], **values} if merges else values
        return content


def edit(name: str, **values: Any) -> Change:
    """Change keys of a JSON file of the folder; None removes a key."""

    def change(folder: Path, _: Material) -> None:
        content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        content = {k: v for k, v in {**content, **values}.items() if v is not None}
        (folder / name).write_text(json.dumps(content))

    return change


def weights(change_tensors: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """Change the tensors of the folder."""

    def change(folder: Path, _: Material) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "model.safetensors"
        save_file(change_tensors(load_file(file)), file, metadata={"format": "pt"})

    return change


def without(*parts: str) -> Change:
    return weights(lambda t: {k: v for k, v in t.items() if not any(p in k for p in parts)})


def another(class_name: str, config_name: str, **settings: Any) -> Change:
    """Put a random model of another class in the folder, beside the same tokenizer."""

    def change(folder: Path, _: Material) -> None:
        import torch
        import transformers

        for file in (*folder.glob("*.safetensors"), folder / "config.json"):
            file.unlink()
        torch.manual_seed(0)
        config = getattr(transformers, config_name)(**{**SMALL, **settings})
        getattr(transformers, class_name)(config).save_pretrained(folder)

    return change


def changed_tokenizer(edit_it: Callable[[Any], object]) -> Change:
    def change(folder: Path, _: Material) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        edit_it(tokenizer)
        tokenizer.save_pretrained(folder)

    return change


def mixtral(folder: Path, material: Material) -> None:
    shutil.rmtree(folder)
    make_mixtral(folder, like=material.model)


def mixtral_with(**settings: Any) -> Change:
    """A Mixtral with these keys in its config.json."""

    def change(folder: Path, material: Material) -> None:
        mixtral(folder, material)
        edit("config.json", **settings)(folder, material)

    return change


def pickled(folder: Path, _: Material) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path, _: Material) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def sharded(folder: Path, _: Material) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    from safetensors.torch import load_file

    names = load_file(folder / "model-00001-of-00002.safetensors")
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    weight_map["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def without_eos(tokenizer: Any) -> None:
    tokenizer.eos_token = None


def add_pad(tokenizer: Any) -> None:
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})


def add_word(tokenizer: Any) -> None:
    tokenizer.add_tokens(["zebra"])


def template(text: str) -> Change:
    def set_template(tokenizer: Any) -> None:
        tokenizer.chat_template = text

    return changed_tokenizer(set_template)


def records(*given: Any, repeat: int = 12) -> Callable[[Path], object]:
    """Rows of these records, each `repeat` times with a number in its question."""

    def write(path: Path) -> None:
        lines = [
            json.dumps(record).replace("what", f"what {number}")
            for number in range(repeat)
            for record in given
        ]
        path.write_text("\n".join(lines))

    return write


def lora(**values: Any) -> dict[str, Any]:
    return {"lora": values}


def training(**values: Any) -> dict[str, Any]:
    return {"training": values}


def deepspeed(config: dict[str, Any], stage: int = 1) -> dict[str, Any]:
    """Sections of a trial with a DeepSpeed configuration of the user's."""
    return {"zero_stage": stage, "deepspeed": {"config": config}}
