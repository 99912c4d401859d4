"""Builds what a worker builds, without weights and without training: what fails here fails there.

    python -m trial.rehearsal REQUEST ANSWER

`request` holds the files of a request and its answer, and is torch-free; the rest loads torch and
runs in a process of its own.
"""
