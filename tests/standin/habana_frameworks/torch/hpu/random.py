"""STAND-IN: the CPU's generator draws for the device too, so its state is the device's."""

import torch

default_generators = [torch.default_generator]
get_rng_state = torch.random.get_rng_state
set_rng_state = torch.random.set_rng_state
initial_seed = torch.initial_seed


def manual_seed(seed):
    return None


manual_seed_all = manual_seed


def get_rng_state_all():
    return [get_rng_state()]


def set_rng_state_all(states):
    set_rng_state(states[0])
