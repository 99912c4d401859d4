"""Base model, tokenizer, LoRA adapter and weights."""
