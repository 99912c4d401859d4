"""One thread for every training in the tests: tiny models on busy cores crawl with more.

A wide terminal: where a message breaks must not depend on the folder the checkout lies in.
The same draws in every run, but where fuzzing is to go on for longer (`make test-faults`).
"""

import os

import hypothesis

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["COLUMNS"] = "400"

hypothesis.settings.register_profile("same", derandomize=True)
if "FUZZ_TIMES" not in os.environ:
    hypothesis.settings.load_profile("same")
