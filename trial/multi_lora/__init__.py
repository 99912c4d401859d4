"""Tensors of several LoRA adapters over one frozen base model.

A slot is a place for one trial's adapter: tensors of all adapters are stacked to [K, ...], K slots.
"""
