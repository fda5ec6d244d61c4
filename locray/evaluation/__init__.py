"""Predictions against annotations: metrics of an artifact on a data set."""
