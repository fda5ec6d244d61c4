"""Trained networks made ready to label, on processors and GPUs."""
