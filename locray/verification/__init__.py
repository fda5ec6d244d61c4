"""Verifies a predictions table against its log, its files, a listing and its model."""
