"""Annotated data sets: one reader a format. Called by training and evaluation."""
