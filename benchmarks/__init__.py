"""Measures the speed of locray and of what people would use instead."""
