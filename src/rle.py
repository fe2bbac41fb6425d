"""Run-length encoding as the competition wants it: 1-indexed, row by row, `start length` pairs."""

import re

import numpy as np

PAIRS = re.compile(r"[0-9]+ [0-9]+(?: [0-9]+ [0-9]+)*", re.ASCII)


def encode(mask: np.ndarray) -> str:
    """H×W bool or integer mask (non-zero is inside) → "start length start length ...".

    An empty mask gives the empty text. Pixels count from 1, along the rows.
    """
    flat = np.zeros(mask.size + 2, dtype=bool)  # a border of zeros: every run starts and ends
    np.not_equal(mask.reshape(-1), 0, out=flat[1:-1])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges.tolist()))


def parse(text: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Text → (0-indexed starts, lengths), int64, for a frame of `size` pixels.

    ValueError says which rule is broken: pairs of plain numbers, positive, increasing without
    overlap, inside the frame.
    """
    if text == "":
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if not PAIRS.fullmatch(text):
        numbers = text.split(" ")
        bad = next((n for n in numbers if not (n.isascii() and n.isdigit())), None)
        raise ValueError(
            "an odd count of numbers" if bad is None else f"{bad[:20]!r} is not a number"
        )
    if max(map(len, text.split(" "))) > 18:
        raise ValueError("a number that is too large")
    numbers = np.array(text.split(" "), dtype=np.int64)
    starts, lengths = numbers[::2], numbers[1::2]
    if starts.min() < 1 or lengths.min() < 1:
        raise ValueError("a start or a length below 1")
    ends = starts + lengths  # the first pixel after each run
    if (starts[1:] < ends[:-1]).any():
        at = int(np.argmax(starts[1:] < ends[:-1]))
        raise ValueError(f"run {starts[at + 1]} begins before run {starts[at]} ends")
    if ends[-1] - 1 > size:
        raise ValueError(f"pixel {ends[-1] - 1} lies outside the frame of {size}")
    return starts - 1, lengths


def decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Text → H×W bool mask. Strict: ValueError says what is wrong (see `parse`)."""
    starts, lengths = parse(text, shape[0] * shape[1])
    mask = np.zeros(shape[0] * shape[1], dtype=bool)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        mask[start : start + length] = True
    return mask.reshape(shape)
