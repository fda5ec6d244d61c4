"""The nightly run: label, verify, maintain the table, and keep a record."""
