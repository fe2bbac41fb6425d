"""Timers and baselines of bench.py."""
