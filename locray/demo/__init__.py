"""The demo: data made on the spot, then everything that locray does, on one machine. Called by the command line."""
