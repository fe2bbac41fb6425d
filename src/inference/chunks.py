"""A long prediction in parts, each whole or not there: it goes on where it was stopped."""

import csv
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np

from core.files import atomic_write, folder_lock, remove_stale_tmp_files
from core.settings import Settings
from data import cache
from data.sample import Sample
from inference.postprocess import Binarizer
from inference.predictor import EnsembleMember

BATCHES_PER_CHUNK = 16  # of a part


@dataclass
class ImageResult:
    """What a prediction leaves of one image."""

    img: str
    text: str  # the mask's run lengths; of several classes their SHA-256
    area: float  # the part of the image that is not background
    agreement: float  # see infer.agreement()
    error: str = ""  # why there is no mask
    measured: dict[str, np.ndarray] = field(default_factory=dict)  # see oof.measure()


class ChunkedPrediction:
    """The rows of a prediction, cut into parts of whole batches, and the folder of those done."""

    def __init__(self, folder: Path, rows: list[Sample], batch: int):
        self.folder, self.samples, self.size = folder, rows, BATCHES_PER_CHUNK * batch

    def __len__(self) -> int:
        return -(-len(self.samples) // self.size)

    @contextmanager
    def held(self, key: str) -> Iterator[None]:
        """Keeps others out of the folder; holds what is done of the prediction with this key, and
        nothing of any other."""
        with folder_lock(self.folder, "wait, or write another with submission_csv=..."):
            remove_stale_tmp_files(self.folder.parent, f"{self.folder.stem}.")  # of what is merged
            note = self.folder / "key.txt"
            if not note.exists() or note.read_text() != key:
                for path in self.folder.glob("[0-9]*"):
                    path.unlink()
                with atomic_write(note) as partial:
                    partial.write_text(key)
            yield

    def path(self, i: int) -> Path:
        """The table of part i; where it is, the part is done."""
        return self.folder / f"{i:06}.csv"

    def rows_of(self, i: int) -> list[Sample]:
        """The rows of part i."""
        return self.samples[i * self.size : (i + 1) * self.size]

    def missing(self) -> list[int]:
        """The parts that are not done."""
        return [i for i in range(len(self)) if not self.path(i).exists()]

    def write(self, i: int, found: list[ImageResult]) -> None:
        """Store part i: what was measured first, the table last."""
        path, measured = self.path(i), [each.measured for each in found]
        if measured[0]:
            with atomic_write(path.with_suffix(".npz")) as partial, open(partial, "wb") as file:
                np.savez(
                    file, **{name: np.stack([m[name] for m in measured]) for name in measured[0]}
                )
        with (
            atomic_write(path) as partial,
            open(partial, "w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows(astuple(each)[:-1] for each in found)

    def read(self) -> Iterator[ImageResult]:
        """What all parts found, in the rows' order."""
        csv.field_size_limit(2**31 - 1)
        for i in range(len(self)):
            stored = self.path(i).with_suffix(".npz")
            arrays = dict(np.load(stored)) if stored.exists() else {}
            with open(self.path(i), newline="", encoding="utf-8") as file:
                for j, (img, text, area, agreement, fault) in enumerate(csv.reader(file)):
                    measured = {name: array[j] for name, array in arrays.items()}
                    yield ImageResult(img, text, float(area), float(agreement), fault, measured)

    def remove(self) -> None:
        """The prediction is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def prediction_key(
    settings: Settings, members: dict[str, EnsembleMember], rows: list[Sample], cut: Binarizer
) -> str:
    """Tells what is predicted how: only parts of one key belong together."""
    lines = [
        repr(
            (
                settings.tta,
                settings.tile_size,
                settings.tile_overlap,
                settings.batch_size,
                settings.precision,
            )
        )
    ]
    lines += [repr((cut, settings.save_masks, settings.skip_unreadable))]
    for path, member in members.items():
        stat = Path(path).stat()
        lines.append(
            repr((path, stat.st_size, stat.st_mtime_ns, member.preprocessing, member.weight))
        )
    lines.append(cache.cache_key(rows, next(iter(members.values())).preprocessing))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
