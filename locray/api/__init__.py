"""The functions of `import locray`, documented in docs/python.md."""
