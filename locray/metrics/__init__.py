"""Metrics of predictions against annotations: pure NumPy, in memory."""
