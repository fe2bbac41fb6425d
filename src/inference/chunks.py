"""Resumable prediction: results are stored in chunks, each written atomically."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from core.files import atomic_write, file_sha256, folder_lock, remove_stale_tmp_files
from core.settings import Settings
from data.fingerprint import files_hash, short_hash
from data.preprocess import VERSION
from data.sample import Sample
from inference.members import EnsembleMember
from inference.postprocess import Binarizer

BATCHES_PER_CHUNK = 16  # a crash loses at most one chunk; fewer batches make more files


@dataclass
class ImageResult:
    """Stored result of one image."""

    file_name: str
    rle: str  # run lengths of the mask; empty for several classes
    area: float  # fraction of the image that is not background, or not class 0
    agreement: float  # see ImageProbabilities.agreement()
    error: str = ""  # why there is no mask
    scores: dict[str, np.ndarray] = field(default_factory=dict)  # see oof.image_statistics()


class ChunkedPrediction:
    """Samples split into chunks of whole batches, and the folder of the finished chunks.

    File names start with the prediction's key, so chunks of other predictions stay in the folder
    and can be resumed. File names end with a hash of the chunk's images: after one image is
    replaced, only its chunk is predicted again. A stored chunk is also predicted again if it is
    damaged, if an image was unreadable, or if a file of `mask_paths` (a sample's masks and
    overlays) is missing or newer than the chunk: then another prediction has written it.
    """

    def __init__(
        self,
        key: str,
        samples: list[Sample],
        settings: Settings,
        mask_paths: Callable[[Sample], list[Path]],
    ):
        self.submission_path = settings.submission_path
        self.folder = self.submission_path.with_suffix(".chunks")
        self.key, self.samples, self.mask_paths = key, samples, mask_paths
        self.chunk_size = BATCHES_PER_CHUNK * settings.batch_size
        count = math.ceil(len(samples) / self.chunk_size)
        self.images_hashes = [files_hash(self.chunk(i)) for i in range(count)]

    def __len__(self) -> int:
        return len(self.images_hashes)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder, and out of the folder of the masks."""
        with ExitStack() as locks:
            hint = "wait, or choose another file with submission_csv=..."
            locks.enter_context(folder_lock(self.folder, hint))
            if self.samples and (paths := self.mask_paths(self.samples[0])):
                locks.enter_context(folder_lock(paths[0].parent, "wait, it writes masks there"))
            path = self.submission_path
            stats_path = path.with_name(f"{path.stem}_stats.csv")
            for written in (path, path.with_suffix(".json"), stats_path):
                remove_stale_tmp_files(written)  # of an interrupted merge
            yield

    def chunk(self, i: int) -> list[Sample]:
        """Return the samples of chunk `i`."""
        return self.samples[i * self.chunk_size : (i + 1) * self.chunk_size]

    def chunk_path(self, i: int) -> Path:
        """Return the path of chunk `i`; the file exists once the chunk has been written."""
        return self.folder / f"{self.key}_{i:06}_{self.images_hashes[i]}.json"

    def pending(self) -> list[int]:
        """Return the indices of the chunks that are not finished."""
        return [i for i in range(len(self)) if not self.is_finished(i)]

    def is_finished(self, i: int) -> bool:
        """Whether chunk `i` is stored and none of its masks has to be predicted again."""
        if not self.chunk_path(i).exists():
            return False
        try:
            pairs = list(zip(self.chunk(i), self.read_chunk(i), strict=True))
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            print(f"{self.chunk_path(i)}: damaged, predicted again ({error})")
            return False
        # A chunk is written after its masks.
        written = self.chunk_path(i).stat().st_mtime_ns
        return not any(result.error for _, result in pairs) and all(
            path.exists() and path.stat().st_mtime_ns <= written
            for sample, _ in pairs
            for path in self.mask_paths(sample)
        )

    def write(self, i: int, results: list[ImageResult]) -> None:
        """Store chunk `i`."""
        rows = [asdict(result) for result in results]
        with atomic_write(self.chunk_path(i)) as tmp_path:
            tmp_path.write_text(json.dumps(rows, default=np.ndarray.tolist), encoding="utf-8")

    def read(self) -> Iterator[ImageResult]:
        """Iterate over the results of all chunks, in the order of the samples."""
        for i in range(len(self)):
            yield from self.read_chunk(i)

    def read_chunk(self, i: int) -> Iterator[ImageResult]:
        """Iterate over the results of chunk `i`, which is stored."""
        for row in json.loads(self.chunk_path(i).read_text(encoding="utf-8")):
            scores = {name: np.array(values) for name, values in row.pop("scores").items()}
            yield ImageResult(**row, scores=scores)

    def remove(self) -> None:
        """Delete the chunks, and the folder unless it holds chunks of other predictions."""
        for path in self.folder.glob(f"{self.key}_*"):
            path.unlink()
        if any(self.folder.glob("*.json")):
            print(
                f"{self.folder}: contains chunks of other unfinished predictions; delete it unless "
                "you plan to resume them"
            )
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def prediction_key(settings: Settings, members: list[EnsembleMember], binarizer: Binarizer) -> str:
    """Return a hash of the settings and weights that a prediction depends on."""
    parts = [
        (VERSION, settings.tta, settings.tile_size, settings.tile_overlap, settings.batch_size),
        (settings.precision, settings.save_masks, settings.max_images, binarizer),
    ]
    for member in members:
        parts.append((file_sha256(member.path), member.preprocessing, member.weight))
    return short_hash("\n".join(map(repr, parts)), 16)
