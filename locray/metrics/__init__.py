"""Metrics of predictions against annotations: pure NumPy, in memory. Called by training and by evaluation."""
