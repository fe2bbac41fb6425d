"""Measurements, timers and baselines of bench.py."""
