"""Settings of every test process, made before anything else is imported.

One thread for each training: tiny models on busy cores are slower with more. A wide terminal, no
colours: where a message breaks must not depend on the folder of the checkout. Hypothesis draws the
same examples in every run, except where fuzzing is to go on for longer (`make test-faults`).
"""

import os

import hypothesis

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["COLUMNS"] = "400"
os.environ["TERM"] = "dumb"

hypothesis.settings.register_profile("same", derandomize=True)
if "FUZZ_TIMES" not in os.environ:
    hypothesis.settings.load_profile("same")
