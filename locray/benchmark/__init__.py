"""Measured speed beside what people would use instead. Called by the command line, never by other parts."""
