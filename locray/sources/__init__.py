"""Where images come from: each source yields listing batches. Called by the worklist."""
