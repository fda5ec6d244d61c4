"""Measures the speed of locray and of its alternatives."""
