"""Benchmarks: `bench_<op>.py` are pytest-benchmark suites of the ops; the others compare rivals."""
