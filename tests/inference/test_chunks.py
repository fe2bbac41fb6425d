"""Chunks of a prediction: which are pending, what is stored, and when they are discarded."""

import os
from dataclasses import replace

import numpy as np
import pytest

from core import files
from core.errors import InputError
from core.settings import Settings
from data.classes import ClassMap
from data.fingerprint import files_hash
from data.preprocess import Preprocessing
from data.sample import Sample
from inference import chunks
from inference.chunks import (
    BATCHES_PER_CHUNK,
    ChunkedPrediction,
    ImageResult,
    prediction_key,
)
from inference.members import EnsembleMember
from inference.postprocess import Binarizer

SETTINGS = Settings(batch_size=1)
N_SAMPLES = 2 * BATCHES_PER_CHUNK + 3  # three chunks of batches of one image


def make_samples(folder, count=N_SAMPLES):
    class_map = ClassMap(("car",), ((0, 0, 0),))
    paths = [folder / f"{i}.jpg" for i in range(count)]
    for path in paths:
        path.write_text(path.name)
    return [Sample(path, path.stem, None, -1, "carvana", class_map) for path in paths]


def make_prediction(submission_csv, samples, key="key", mask_paths=lambda sample: []):
    settings = replace(SETTINGS, submission_csv=str(submission_csv))
    return ChunkedPrediction(key, samples, settings, mask_paths)


def make_results(samples, with_scores=False):
    return [make_result(int(sample.image_id), with_scores) for sample in samples]


@pytest.fixture
def prediction(tmp_path):
    """A locked prediction."""
    samples = make_samples(tmp_path)
    chunked = make_prediction(tmp_path / "submission.csv", samples)
    with chunked.lock():
        yield chunked


def make_result(i, with_scores):
    scores = {"dice": np.array([i, i / 2])} if with_scores else {}
    return ImageResult(f"{i}.jpg", f"{i + 1} 2", i / 64, 1 - i / 64, "", scores)


def test_pending_lists_chunks_that_are_not_written(prediction):
    assert len(prediction) == 3 and prediction.pending() == [0, 1, 2]
    assert [len(prediction.chunk(i)) for i in range(3)] == [BATCHES_PER_CHUNK] * 2 + [3]
    prediction.write(1, make_results(prediction.chunk(1)))
    assert prediction.pending() == [0, 2]


def test_pending_lists_chunks_with_unreadable_images(prediction):
    results = make_results(prediction.chunk(1))
    results[3].error = "4.jpg: is truncated"
    prediction.write(1, results)
    assert prediction.pending() == [0, 1, 2]


def test_pending_lists_chunks_of_which_a_mask_file_is_missing_or_newer(prediction, tmp_path):
    mask_paths = {sample: tmp_path / f"{sample.image_id}.png" for sample in prediction.samples}
    prediction.mask_paths = lambda sample: [mask_paths[sample]]
    for path in mask_paths.values():
        path.touch()
    for i in range(3):
        prediction.write(i, make_results(prediction.chunk(i)))
    assert prediction.pending() == []
    mask_paths[prediction.chunk(1)[2]].unlink()
    assert prediction.pending() == [1]
    written = prediction.chunk_path(2).stat().st_mtime_ns
    os.utime(mask_paths[prediction.chunk(2)[0]], ns=(written, written + 1))  # by another prediction
    assert prediction.pending() == [1, 2]


def test_lock_keeps_other_predictions_out_of_the_folder_of_the_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0)
    samples = make_samples(tmp_path, 1)
    masks = {"mask_paths": lambda sample: [tmp_path / "masks" / "a.png"]}
    one, other = (make_prediction(tmp_path / name, samples, **masks) for name in ("a.csv", "b.csv"))
    with (
        one.lock(),
        pytest.raises(InputError, match="masks: another process is using"),
        other.lock(),
    ):
        pass
    with other.lock():
        pass


@pytest.mark.parametrize("with_scores", [False, True])
def test_read_returns_what_was_written_in_the_order_of_the_samples(prediction, with_scores):
    for i in (2, 0, 1):
        prediction.write(i, make_results(prediction.chunk(i), with_scores))
    results = list(prediction.read())
    assert [replace(result, scores={}) for result in results] == [
        make_result(i, False) for i in range(N_SAMPLES)
    ]
    for i, result in enumerate(results):
        assert result.scores.keys() == ({"dice"} if with_scores else set())
        assert not with_scores or result.scores["dice"].tolist() == [i, i / 2]


def test_read_returns_errors_nan_and_long_texts(tmp_path):
    prediction = make_prediction(tmp_path / "submission.csv", make_samples(tmp_path, 2))
    long_text = "1 1 " * 100_000
    prediction.write(
        0, [ImageResult("a", "", 0.0, np.nan, 'a\n,"b'), ImageResult("b", long_text, 1, 1)]
    )
    first, second = prediction.read()
    assert np.isnan(first.agreement) and first.error == 'a\n,"b' and first.rle == ""
    assert second.rle == long_text and second.error == ""


def test_predictions_with_other_keys_have_chunks_of_their_own(tmp_path):
    path, samples = tmp_path / "submission.csv", make_samples(tmp_path)
    first, second = (make_prediction(path, samples, key) for key in ("key", "other key"))
    with first.lock():
        first.write(1, make_results(first.chunk(1)))
        assert (first.pending(), second.pending()) == ([0, 2], [0, 1, 2])
        second.write(0, make_results(second.chunk(0)))
    second.remove()
    assert (first.pending(), second.pending()) == ([0, 2], [0, 1, 2])
    first.remove()
    assert not first.folder.exists()


def test_only_the_chunk_of_a_replaced_image_is_predicted_again(prediction, tmp_path):
    for i in range(3):
        prediction.write(i, make_results(prediction.chunk(i)))
    (tmp_path / f"{BATCHES_PER_CHUNK}.jpg").write_text("downloaded again")
    again = make_prediction(prediction.submission_path, prediction.samples)
    assert again.pending() == [1]
    again.remove()  # the chunk with the image as it was, too
    assert not prediction.folder.exists()


def test_lock_removes_what_an_interrupted_merge_left(tmp_path):
    others = {".submission_2.csv.9.tmp", ".submission.b.csv.9.tmp"}
    for name in (".submission.csv.9.tmp", ".submission_stats.csv.9.tmp", *others):
        (tmp_path / name).touch()
    with make_prediction(tmp_path / "submission.csv", []).lock():
        assert {path.name for path in tmp_path.glob(".*.tmp")} == others


def test_prediction_key_depends_on_weights_settings_and_binarizer(tmp_path):
    (tmp_path / "weights").write_text("weights")
    member = EnsembleMember(None, Preprocessing((32, 48)), path=tmp_path / "weights")

    def key(member=member, binarizer=None, **settings):
        return prediction_key(Settings(**settings), [member], binarizer or Binarizer(0.5, []))

    before = key()
    assert key() == before == key(skip_unreadable=True)
    changed = [
        *(key(tta="flips"), key(tile_size=128), key(tile_overlap=0.5), key(batch_size=3)),
        *(key(precision="bf16"), key(save_masks=True), key(max_images=8)),
        key(member=replace(member, weight=0.5)),
        key(member=replace(member, preprocessing=Preprocessing((32, 48), letterbox=True))),
        *(key(binarizer=Binarizer(0.4, [])), key(binarizer=Binarizer(0.5, ["fill"]))),
    ]
    (tmp_path / "weights").write_text("others")
    changed.append(key())
    assert before not in changed and len(set(changed)) == len(changed)


def test_prediction_key_changes_with_the_version_of_preprocessing(monkeypatch):
    before = prediction_key(SETTINGS, [], Binarizer(0.5, []))
    monkeypatch.setattr(chunks, "VERSION", chunks.VERSION + 1)
    assert prediction_key(SETTINGS, [], Binarizer(0.5, [])) != before


def test_files_hash_depends_on_names_and_content(tmp_path):
    samples = make_samples(tmp_path, 2)
    before = files_hash(samples)
    assert files_hash(samples) == before != files_hash(samples[:1])
    samples[0].image.write_text("another")
    assert files_hash(samples) != before


def test_pending_lists_chunks_that_are_damaged(prediction, capsys):
    for i in range(3):
        prediction.write(i, make_results(prediction.chunk(i)))
    text = prediction.chunk_path(1).read_text()
    for damaged in ("", text[:-1], text[: len(text) // 2], "[]", "[1]"):
        prediction.chunk_path(1).write_text(damaged)
        assert prediction.pending() == [1]
        assert f"{prediction.chunk_path(1)}: damaged, predicted again" in capsys.readouterr().out
