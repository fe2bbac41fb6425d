"""A progress bar for work that may take hours, on a terminal or in a log file."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

LOG_INTERVAL_S = 600


def image_progress(
    items: Iterable, title: str, total: int, done: int = 0, leave: bool = True
) -> tqdm:
    """Return a progress bar over `items`, one per image, that starts at `done` of `total`.

    With `leave=False` the bar disappears at the end. If stderr is not a terminal, a line is printed
    every LOG_INTERVAL_S seconds instead.
    """
    log = {}
    if not sys.stderr.isatty():
        log = dict.fromkeys(("delay", "mininterval", "maxinterval"), LOG_INTERVAL_S)
        log["bar_format"] = "{desc}: {n_fmt} of {total_fmt} images, {remaining} left\n"
    return tqdm(items, title, total, leave, initial=done, unit="image", **log)
