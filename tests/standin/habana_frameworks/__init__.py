"""A STAND-IN for Habana's own package, for tests without a Gaudi. It computes on the CPU.

It is here only where the environment asks for it by name, never from an installed package, never
beside a real device and never beside the real software: then importing it fails and says why.
"""

import os
from importlib.machinery import PathFinder
from pathlib import Path

SWITCH = "GAUDI_SWEEP_TEST_HPU_STAND_IN"
ROOT = Path(__file__).resolve().parent.parent
DEVICES = ("accel/accel0", "hl0", "accel/accel_controlD0")


def _refusal() -> str:
    if os.environ.get(SWITCH) != "1":
        return f"{SWITCH} is not 1"
    if {"site-packages", "dist-packages"} & set(ROOT.parts) or ROOT.parent.name != "tests":
        return f"it is in {ROOT}, not among the tests of a checkout"
    if found := [name for name in DEVICES if Path("/dev", name).exists()]:
        return f"there is a device: /dev/{found[0]}"
    import sys

    others = [path for path in sys.path if Path(path or ".").resolve() != ROOT]
    if real := PathFinder.find_spec("habana_frameworks", others):
        return f"the real software is here: {real.origin}"
    return ""


if _why := _refusal():
    raise ImportError(f"the stand-in for habana_frameworks is not for use here: {_why}")
