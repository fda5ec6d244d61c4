"""Whether a predictions table is what it should be: beside its log, its files, a listing and its model."""
