"""Alternatives to locray, one script each.

All take the same arguments (`job.Job`), label the same files with the same network, write the same columns as
Parquet, and note the time of each batch.
"""
