"""Several LoRA trials trained at once in one process, over one frozen base model."""
