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

# No deadlines: how long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("fuzz", deadline=None)
hypothesis.settings.load_profile("fuzz" if "FUZZ_TIMES" in os.environ else "same")
