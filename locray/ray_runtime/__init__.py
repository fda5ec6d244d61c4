"""Ray: starting it, keeping it quiet, and its private names, each with a public fallback."""
