"""What is done every night: label, verify, tidy up, and keep a record."""
