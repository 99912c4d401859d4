"""`python -m sweep`: the same as `gaudi-sweep`."""

from sweep.cli import main

main()
