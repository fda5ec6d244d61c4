"""Measured speed beside what people would use instead."""
