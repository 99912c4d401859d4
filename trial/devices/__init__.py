"""Devices (hpu, cuda, cpu): detection, environment, memory, DeepSpeed settings."""
