"""One thread for every training in the tests: tiny models on busy cores crawl with more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
