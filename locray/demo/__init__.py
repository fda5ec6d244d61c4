"""The demo: drawn data, and then everything that locray does, on one machine."""
