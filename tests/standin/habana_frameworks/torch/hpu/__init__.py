"""STAND-IN: as many cards as the environment says. Memory figures are zero, not invented."""

import contextlib
import os

from habana_frameworks.torch.hpu import random

COUNT = "GAUDI_SWEEP_TEST_HPU_COUNT"


def is_available():
    return True


def is_initialized():
    return True


def device_count():
    modules = [part for part in os.environ.get("HABANA_VISIBLE_MODULES", "").split(",") if part]
    return len(modules) or int(os.environ.get(COUNT, "1"))


def get_device_name(device=None):
    return "stand-in"


def current_device():
    return 0


def set_device(device):
    return None


def synchronize(device=None):
    return None


def empty_cache():
    return None


def memory_stats(device=None):
    return {"Limit": 0, "InUse": 0, "MaxInUse": 0}


def max_memory_allocated(device=None):
    return 0


def memory_allocated(device=None):
    return 0


def reset_peak_memory_stats(device=None):
    return None


def mem_get_info(device=None):
    return (0, 0)


def enable_dynamic_shape():
    return None


def disable_dynamic_shape():
    return None


class Event:
    """An event that is complete as soon as it is recorded."""

    def __init__(self, *_, **__):
        pass

    def record(self, *_):
        return None

    def synchronize(self):
        return None

    def query(self):
        return True

    def elapsed_time(self, other):
        return 0.0


class Stream(Event):
    """The device's only stream."""

    def wait_stream(self, other):
        return None

    def wait_event(self, event):
        return None


def current_stream(device=None):
    return Stream()


default_stream = current_stream


@contextlib.contextmanager
def stream(_):
    yield


memory_reserved = max_memory_reserved = memory_cached = max_memory_cached = memory_allocated
reset_max_memory_allocated = reset_peak_memory_stats


@contextlib.contextmanager
def sdp_kernel(*_, **__):
    yield


def wrap_in_hpu_graph(*_, **__):
    raise NotImplementedError("the stand-in has no HPU graphs")


class ModuleCacher:
    """Refuses: HPU graphs need a device."""

    def __init__(self, *_, **__):
        raise NotImplementedError("the stand-in has no HPU graphs")


manual_seed_all = random.manual_seed_all
get_rng_state = random.get_rng_state
set_rng_state = random.set_rng_state
get_rng_state_all = random.get_rng_state_all
