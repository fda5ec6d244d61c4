"""What people would use instead of locray: each a script with a process of its own, started by `benchmark.labelling`.

All take the same arguments (`job.Job`), label the same files with the same network, write the same columns as
Parquet, and note the time of each batch. They may import any framework: that is what they are here to show.
"""
