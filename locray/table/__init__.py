"""The predictions table in Delta."""
