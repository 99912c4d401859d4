"""From files to token tensors: readers, rows, split, prompts, batches, order."""
