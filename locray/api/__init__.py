"""The functions of `import locray`. What they give and take is documented in docs/python.md."""
