"""Several ranks of one trial: their environment variables, messages and processes."""
