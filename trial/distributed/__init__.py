"""Several ranks of one trial: their environment, their messages, their processes."""
