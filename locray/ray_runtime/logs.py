"""Log lines of worker processes."""

import logging

PACKAGE = "locray"
LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_worker_file() -> None:
    """Sends INFO lines of this process to stderr, which Ray keeps as `worker-*.err` in the session's log folder.

    Ray gives its workers no handler for them. Where Ray Train or a logging configuration of the job has set one up,
    that one is used. Calling it again changes nothing.
    """
    logger = logging.getLogger(PACKAGE)
    logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(LINE_FORMAT))
        logger.addHandler(handler)
