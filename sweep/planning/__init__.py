"""Before a sweep runs: advice, checks, cost, and the state of the machine."""
