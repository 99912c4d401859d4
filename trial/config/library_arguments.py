"""The argument names of the installed libraries, read from their source without importing them.

Importing `TrainingArguments`, `GaudiTrainingArguments` or `LoraConfig` loads torch, which takes
seconds. A sweep file must be checked before any worker starts, so the dataclasses are parsed (AST)
instead: the names of the installed version, in some tens of milliseconds.

The functions raise ModuleNotFoundError if their library is not installed.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional, Union

from pydantic import TypeAdapter, ValidationError

_SIMPLE: dict[str, Any] = {
    "int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list": list,
    "Any": Any, "Optional": Optional, "Union": Union, "Literal": Literal, "None": None,
}  # fmt: skip
"""Names in annotations that are evaluated; an annotation with another name accepts any value."""


_TRACKERS = "INTEGRATION_TO_CALLBACK"


@dataclass(frozen=True, slots=True)
class Argument:
    """One dataclass field: name, annotation as written, and the type that values are checked by."""

    name: str
    annotation: str
    accepts: Any

    def refusal(self, value: object) -> str:
        """What the argument expects, when it does not accept `value`; otherwise an empty string."""
        try:
            _adapter(self.accepts).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = {str(item.get("ctx", {}).get("expected", "")) for item in error.errors()}
            choices = next((text for text in sorted(wanted, key=len, reverse=True) if text), "")
            return f"one of {choices}" if choices else f"a value of type {self.annotation}"
        return ""


@cache
def _adapter(accepts: Any) -> TypeAdapter[Any]:
    """Cached by type: a resumed sweep checks every argument of every trial."""
    return TypeAdapter(accepts)


def _source(package: str, path: str) -> ast.Module:
    spec = importlib.util.find_spec(package.split(".")[0])
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed")
    for root in spec.submodule_search_locations:
        file = Path(root, *package.split(".")[1:], path)
        if file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    raise ModuleNotFoundError(f"{package} has no {path}")


def _enums(tree: ast.Module) -> dict[str, Any]:
    """String enumerations of a module as `Literal` types by class name."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(b) for b in node.bases):
            values = [
                item.value.value
                for item in node.body
                if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
            ]
            if values and all(isinstance(value, str) for value in values):
                found[node.name] = Literal[tuple(values)]
    return found


def _type(annotation: ast.expr, names: dict[str, Any]) -> Any:
    """The type that an annotation means; `Union[SomeEnum, str]` accepts the enum's values only."""
    text = ast.unparse(annotation)
    for enum in names:
        text = text.replace(f"Union[{enum}, str]", enum)
    try:
        return eval(text, {"__builtins__": {}}, {**_SIMPLE, **names})
    except (NameError, TypeError, SyntaxError):
        return Any


def _arguments(tree: ast.Module, cls: str, names: dict[str, Any]) -> dict[str, Argument]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == cls:
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            return {
                item.target.id: Argument(
                    item.target.id, ast.unparse(item.annotation), _type(item.annotation, names)
                )
                for item in fields
                if isinstance(item.target, ast.Name) and not item.target.id.startswith("_")
            }
    raise LookupError(f"no class {cls}")


@cache
def training_arguments() -> dict[str, Argument]:
    """`TrainingArguments` and `GaudiTrainingArguments` fields by name."""
    source = _source("transformers", "training_args.py")
    enums = {**_enums(_source("transformers", "trainer_utils.py")), **_enums(source)}
    gaudi = _source("optimum.habana.transformers", "training_args.py")
    return {
        **_arguments(gaudi, "GaudiTrainingArguments", enums),
        **_arguments(source, "TrainingArguments", enums),
    }


@cache
def gaudi_only_arguments() -> frozenset[str]:
    """Fields of `GaudiTrainingArguments` that `TrainingArguments` does not have."""
    source = _source("transformers", "training_args.py")
    gaudi = _source("optimum.habana.transformers", "training_args.py")
    return frozenset(_arguments(gaudi, "GaudiTrainingArguments", {})) - frozenset(
        _arguments(source, "TrainingArguments", {})
    )


@cache
def reporters() -> tuple[str, ...]:
    """The names that `report_to` accepts: transformers' trackers, `all` and `none`."""
    source = _source("transformers.integrations", "integration_utils.py")
    for node in source.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _TRACKERS:
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return ("none", "all", *(ast.literal_eval(key) for key in keys if key))
    raise LookupError(f"no {_TRACKERS}")


LORAPLUS_RATIO = "loraplus_lr_ratio"
"""PEFT's name for the learning rate of every B over that of every A."""


@cache
def optimizer_arguments() -> dict[str, Argument]:
    """Arguments of PEFT's LoRA+ optimizer that a trial's `training` section may have, by name.

    Raises:
        LookupError: the installed PEFT names them otherwise.
    """
    for node in _source("peft.optimizers", "loraplus.py").body:
        if isinstance(node, ast.FunctionDef) and node.name == "create_loraplus_optimizer":
            for argument in node.args.kwonlyargs:
                if argument.arg == LORAPLUS_RATIO and argument.annotation is not None:
                    kind = ast.unparse(argument.annotation)
                    return {LORAPLUS_RATIO: Argument(LORAPLUS_RATIO, kind, float | None)}
    raise LookupError(f"no {LORAPLUS_RATIO}")


@cache
def lora_arguments() -> dict[str, Argument]:
    """PEFT's `LoraConfig` fields by name."""
    return _arguments(_source("peft.tuners.lora", "config.py"), "LoraConfig", {})


@cache
def gaudi_config_keys() -> dict[str, type]:
    """`GaudiConfig` keys and their types, `bool` or `list`; GaudiConfig ignores unknown keys."""
    tree = _source("optimum.habana.transformers", "gaudi_configuration.py")
    found: dict[str, type] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="pop"), args=[ast.Constant(key), default]):
                switch = isinstance(default, ast.Constant) and isinstance(default.value, bool)
                found[str(key)] = bool if switch else list
    return found
