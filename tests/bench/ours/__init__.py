"""Scripts that measure ours, each in a process of its own."""
