"""Measures the kernels beside what else there is; `launch/benchmark.py` calls it."""
