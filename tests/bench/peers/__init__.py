"""Scripts that measure the peers, in the peers' Python."""
