"""STAND-IN: whether lazy mode is on; 1 is the default of PT_HPU_LAZY_MODE here."""

import os


def is_lazy():
    return os.environ.get("PT_HPU_LAZY_MODE", "1") == "1"
