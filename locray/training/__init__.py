"""From a data set to an artifact, on Ray Train."""
