"""Chunks of a prediction: which are pending, what is stored, and when they are discarded."""

from dataclasses import replace

import numpy as np
import pytest

from core.settings import Settings
from data.classes import ClassMap
from data.preprocess import Preprocessing
from data.sample import Sample
from inference.chunks import BATCHES_PER_CHUNK, ChunkedPrediction, ImageResult, prediction_key
from inference.members import EnsembleMember
from inference.postprocess import Binarizer

N_SAMPLES = 2 * BATCHES_PER_CHUNK + 3  # three chunks of batches of one image


@pytest.fixture
def prediction(tmp_path):
    """A locked prediction of samples that are numbers."""
    chunked = ChunkedPrediction(tmp_path / "submission.chunks", "key", list(range(N_SAMPLES)), 1)
    with chunked.lock():
        yield chunked


def make_result(i, with_scores):
    scores = {"dice": np.array([i, i / 2])} if with_scores else {}
    return ImageResult(f"{i}.jpg", f"{i + 1} 2", i / 64, 1 - i / 64, "", scores)


def test_pending_lists_chunks_that_are_not_written(prediction):
    assert len(prediction) == 3 and prediction.pending() == [0, 1, 2]
    assert [len(prediction.chunk(i)) for i in range(3)] == [BATCHES_PER_CHUNK] * 2 + [3]
    prediction.write(1, [make_result(i, False) for i in prediction.chunk(1)])
    assert prediction.pending() == [0, 2]


@pytest.mark.parametrize("with_scores", [False, True])
def test_read_returns_what_was_written_in_the_order_of_the_samples(prediction, with_scores):
    for i in (2, 0, 1):
        prediction.write(i, [make_result(k, with_scores) for k in prediction.chunk(i)])
    results = list(prediction.read())
    assert [replace(result, scores={}) for result in results] == [
        make_result(i, False) for i in range(N_SAMPLES)
    ]
    for i, result in enumerate(results):
        assert result.scores.keys() == ({"dice"} if with_scores else set())
        assert not with_scores or result.scores["dice"].tolist() == [i, i / 2]


def test_read_returns_errors_nan_and_long_texts(tmp_path):
    prediction = ChunkedPrediction(tmp_path / "chunks", "key", [0, 1], 1)
    long_text = "1 1 " * 100_000
    prediction.write(
        0, [ImageResult("a", "", 0.0, np.nan, 'a\n,"b'), ImageResult("b", long_text, 1, 1)]
    )
    first, second = prediction.read()
    assert np.isnan(first.agreement) and first.error == 'a\n,"b' and first.rle == ""
    assert second.rle == long_text and second.error == ""


def test_predictions_with_other_keys_have_chunks_of_their_own(tmp_path):
    folder, samples = tmp_path / "submission.chunks", list(range(N_SAMPLES))
    first, second = (ChunkedPrediction(folder, key, samples, 1) for key in ("key", "other key"))
    with first.lock():
        first.write(1, [make_result(i, True) for i in first.chunk(1)])
        assert (first.pending(), second.pending()) == ([0, 2], [0, 1, 2])
        second.write(0, [make_result(i, True) for i in second.chunk(0)])
    second.remove()
    assert (first.pending(), second.pending()) == ([0, 2], [0, 1, 2])
    first.remove()
    assert not folder.exists()


def test_lock_removes_what_an_interrupted_merge_left(tmp_path):
    other = ".submission_2.csv.9.tmp"
    for name in (".submission.csv.9.tmp", ".submission_stats.csv.9.tmp", other):
        (tmp_path / name).touch()
    with ChunkedPrediction(tmp_path / "submission.chunks", "key", [0], 1).lock():
        assert [path.name for path in tmp_path.glob(".*.tmp")] == [other]


def test_remove_deletes_the_folder(tmp_path):
    prediction = ChunkedPrediction(tmp_path / "submission.chunks", "key", [0], 1)
    prediction.write(0, [make_result(0, True)])
    prediction.remove()
    assert not prediction.folder.exists() and tmp_path.exists()


def test_prediction_key_depends_on_weights_samples_settings_and_binarizer(tmp_path):
    for name in ("weights", "a.jpg", "b.jpg"):
        (tmp_path / name).write_text(name)
    class_map = ClassMap(("car",), ((0, 0, 0),))
    samples = [Sample(tmp_path / f"{n}.jpg", n, None, -1, "carvana", class_map) for n in "ab"]
    member = EnsembleMember(None, Preprocessing((32, 48)))

    def key(settings=None, member=member, samples=samples, binarizer=None):
        return prediction_key(
            settings or Settings(),
            {str(tmp_path / "weights"): member},
            samples,
            binarizer or Binarizer(0.5, []),
        )

    before = key()
    assert key() == before
    changed = [
        *(key(Settings(tta="flips")), key(Settings(tile_size=128)), key(Settings(batch_size=3))),
        *(key(Settings(precision="bf16")), key(Settings(save_masks=True))),
        *(key(member=replace(member, weight=0.5)), key(samples=samples[:1])),
        *(key(binarizer=Binarizer(0.4, [])), key(binarizer=Binarizer(0.5, ["fill"]))),
    ]
    (tmp_path / "a.jpg").write_text("another")
    changed.append(key())
    (tmp_path / "weights").write_text("others")
    changed.append(key())
    assert before not in changed and len(set(changed)) == len(changed)
