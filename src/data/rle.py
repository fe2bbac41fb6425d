"""Run-length encoding of the competition: 1-indexed, row by row, "start length" pairs."""

import re

import numpy as np

RLE_PATTERN = re.compile(r"[0-9]+ [0-9]+(?: [0-9]+ [0-9]+)*", re.ASCII)
# A mask with a lower vertical_continuity() is scattered. 0.8: columns of 5 pixels on average.
MIN_CONTINUITY = 0.8
MAX_DIGITS = 18  # a number with more may overflow int64


def encode(mask: np.ndarray) -> str:
    """Return "start length start length ..." of an H×W mask, bool or integer (non-zero is inside).

    Pixels are numbered from 1, row by row. An empty mask returns an empty string.
    """
    flat = (mask if mask.dtype == bool else mask != 0).ravel()
    bounds = np.flatnonzero(flat[1:] != flat[:-1]) + 1  # begin, end, begin, end, ...; 0-indexed
    if flat[:1].any():
        bounds = np.append(0, bounds)
    if flat[-1:].any():
        bounds = np.append(bounds, flat.size)
    starts, lengths = bounds[::2] + 1, bounds[1::2] - bounds[::2]
    runs = np.column_stack([starts, lengths]).ravel()
    return str(runs.tolist())[1:-1].replace(",", "")  # faster than " ".join


def parse_runs(text: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 0-indexed starts and lengths, int64, of the runs in a frame of `size` pixels.

    Runs must be pairs of plain numbers, positive, increasing without overlap, and inside the frame.
    Raises ValueError that names the broken rule.
    """
    if text == "":
        return np.empty(0, np.int64), np.empty(0, np.int64)
    words = text.split(" ")
    if not RLE_PATTERN.fullmatch(text):
        for word in words:
            if not (word.isascii() and word.isdigit()):
                raise ValueError(f"{word[:20]!r} is not a number")
        raise ValueError("an odd count of numbers")
    if max(map(len, words)) > MAX_DIGITS:
        raise ValueError("a number is too large")
    numbers = np.array(words, dtype=np.int64)
    starts, lengths = numbers[::2], numbers[1::2]
    if starts.min() < 1 or lengths.min() < 1:
        raise ValueError("a start or a length is below 1")
    ends = starts + lengths  # the first pixel after each run
    if (starts[1:] < ends[:-1]).any():
        i = int(np.argmax(starts[1:] < ends[:-1]))
        raise ValueError(f"run {starts[i + 1]} begins before run {starts[i]} ends")
    if ends[-1] - 1 > size:
        raise ValueError(f"pixel {ends[-1] - 1} lies outside the frame of {size}")
    return starts - 1, lengths


def decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the H×W bool mask of a text. Raises ValueError if it is invalid, see parse_runs()."""
    size = shape[0] * shape[1]
    starts, lengths = parse_runs(text, size)
    bounds = np.column_stack([starts, starts + lengths]).ravel()  # outside, inside, outside, ...
    counts = np.diff(bounds, prepend=0, append=size)
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(shape)


def is_counted_down_columns(text: str, shape: tuple[int, int]) -> bool:
    """Whether the run lengths look column-major, as in other competitions.

    They do if the mask is scattered when decoded row by row, but not when decoded column by column.
    False for objects of up to 4 pixels in width or height, which look the same both ways. `shape`
    is (H, W).
    """
    size = shape[0] * shape[1]
    if not vertical_continuity(*parse_runs(text, size), shape) < MIN_CONTINUITY:  # NaN: unknown
        return False
    starts, lengths = parse_runs(encode(decode(text, shape[::-1]).T), size)
    horizontal_continuity = 1 - len(lengths) / lengths.sum()
    vertical = vertical_continuity(starts, lengths, shape)
    return min(horizontal_continuity, vertical) >= MIN_CONTINUITY


def vertical_continuity(starts: np.ndarray, lengths: np.ndarray, shape: tuple[int, int]) -> float:
    """Return the fraction of a mask's pixels whose lower neighbor is in the mask, too.

    Pixels of the bottom row do not count. Returns NaN if there are no other pixels. The fraction is
    0.996 or more in the competition's masks, and below 0.31 if their pixels are counted down the
    columns. `starts` and `lengths` are those of parse_runs(); `shape` is (H, W).
    """
    height, width = shape
    bounds = np.column_stack([starts, starts + lengths]).ravel()
    sums = np.cumsum(lengths)
    counts = np.column_stack([sums - lengths, sums]).ravel()  # pixels of the mask before each bound
    if not starts.size or starts[0] >= (height - 1) * width:
        return float("nan")
    below = np.interp(starts + lengths + width, bounds, counts)
    below -= np.interp(starts + width, bounds, counts)
    return float(below.sum() / np.interp((height - 1) * width, bounds, counts))
