"""The loop that starts trials, takes in what happens, and decides what follows."""
