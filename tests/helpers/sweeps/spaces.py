"""Search spaces for tests, written as in a sweep file."""

from sweep.spec.dimension_parser import parse_dimension
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec


def make_spec(space, variables=None, base=None, **fields) -> SweepSpec:
    parsed = {
        kind: {name: parse_dimension(raw, name) for name, raw in (given or {}).items()}
        for kind, given in (("space", space), ("variables", variables))
    }
    return SweepSpec(name="study", base=base or {}, **parsed, **fields)


def make(space, variables=None, base=None) -> Space:
    return Space.of(make_spec(space, variables, base))


RS = "lora.use_rslora"


BRANCHED = {
    RS: [True, False],
    "lora.lora_alpha": [
        {"choices": [8, 16], "when": {RS: True}},
        {"low": 1, "high": 4, "when": {RS: False}},
    ],
    "lora.lora_dropout": {"low": 0.0, "high": 0.5, "when": {RS: True}},
    "lora.r": [4, 8],
}
