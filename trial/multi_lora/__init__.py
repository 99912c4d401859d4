"""Tensors of several LoRA adapters over one frozen base model."""
