"""Progress of work that may take hours: a bar on a terminal, lines in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

LOG_INTERVAL_S = 600


def image_progress(
    items: Iterable, title: str, total: int, done: int = 0, leave: bool = True
) -> Iterator:
    """Iterate over `items`, one per image, and show the progress from `done` to `total` images.

    On a terminal, shows a bar, which disappears at the end if `leave` is false. Otherwise prints a
    line to stderr every LOG_INTERVAL_S seconds.
    """
    if sys.stderr.isatty():
        # One iterator: tqdm closes the bar when an iteration over it ends.
        return iter(tqdm(items, title, total, leave, initial=done, unit="image"))
    return _with_log_lines(items, title, total, done)


def _with_log_lines(items: Iterable, title: str, total: int, done: int) -> Iterator:
    start = latest = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - latest >= LOG_INTERVAL_S:
            latest = now
            minutes = (now - start) / count * (total - done - count) / 60
            line = f"{title}: {done + count} of {total} images, {minutes:.0f} minutes left"
            print(line, file=sys.stderr, flush=True)
