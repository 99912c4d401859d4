"""LoRA dropout whose draws depend on trial, step and position alone."""
