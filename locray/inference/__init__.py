"""Trained networks prepared for prediction, on processors and GPUs."""
