"""What scripts import from `transformers.testing_utils`: a logger's messages, captured."""

from __future__ import annotations

import io
import logging


class CaptureLogger:
    """Keeps what a logger writes in a `with` block, to be read from `out` after it.

    Args:
        logger: whose messages are kept.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.io = io.StringIO()
        self.sh = logging.StreamHandler(self.io)
        self.out = ""

    def __enter__(self) -> CaptureLogger:
        self.logger.addHandler(self.sh)
        return self

    def __exit__(self, *error: object) -> None:
        self.logger.removeHandler(self.sh)
        self.out = self.io.getvalue()

    def __repr__(self) -> str:
        return f"captured: {self.out}\n"
