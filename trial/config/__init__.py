"""A trial's configuration: its sections, their rules and error messages, all without torch."""
