"""Measurements: run as programs, `python benchmarks/bench_loss.py --help`."""
