"""locray: labels every image of a bucket with classes and boxes, every night, exactly once."""

__version__ = "0.1.0"
