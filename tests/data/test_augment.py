"""Augmentation policies, applied to image and target together."""

import importlib
import zlib

import cv2
import numpy as np
import pytest
from tiny_datasets import draw_car

from data import augment
from data.augment import POLICIES, A, Augmenter
from data.classes import IGNORE, ClassMap

CAR = ClassMap(("car",), ((60, 220, 90),))
ROAD_AND_CAR = ClassMap(("road", "car"), ((128, 64, 128), (0, 0, 142)))


def car_image_and_target():
    image, mask = draw_car(0, 1, (48, 72))
    return image, mask.astype(np.uint8) * 255


@pytest.mark.parametrize("policy", POLICIES)
def test_augmenter_moves_the_target_with_the_image(policy):
    image, target = car_image_and_target()
    augmenter = Augmenter(policy, 0, CAR)
    for epoch in range(20):
        new_image, new_target = augmenter(image, target, epoch, "a")
        assert new_image.shape == image.shape and new_image.dtype == np.uint8
        assert new_target.shape == target.shape and new_target.dtype == np.uint8
        brightness = new_image.mean(axis=2)
        ground = brightness[(new_target == 0) & (brightness > 5)]  # black is the border
        assert brightness[new_target == 255].mean() < ground.mean() - 30  # the car is darker
        assert ((new_target > 0) & (new_target < 255)).mean() < 0.1  # only its edge is soft


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
def test_augmenter_depends_only_on_seed_epoch_and_image(policy):
    image, target = car_image_and_target()

    def augmented_images(seed, image_id, first_epoch=0):
        augmenter = Augmenter(policy, seed, CAR)
        epochs = range(first_epoch, first_epoch + 12)
        return [augmenter(image, target, epoch, image_id)[0].tobytes() for epoch in epochs]

    expected = augmented_images(0, "a")
    assert augmented_images(0, "a") == expected and len(set(expected)) > 1
    assert augmented_images(1, "a") != expected and augmented_images(0, "b") != expected
    assert augmented_images(1, "a", first_epoch=-1) != expected  # not the sum of seed and epoch


def test_flip_policy_flips_the_images_that_the_first_release_flipped():
    image, target = car_image_and_target()
    augmenter = Augmenter("hflip", 7, CAR)
    for epoch in range(8):
        augmented = augmenter(image, target, epoch, "a_01")
        augmenter.transform.set_random_seed(zlib.crc32(b"7 %d a_01" % epoch))
        expected = augmenter.transform(image=image, mask=target)
        assert np.array_equal(augmented[0], expected["image"])
        assert np.array_equal(augmented[1], expected["mask"])


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "flips"])
def test_augmenter_turns_no_car_upside_down(policy):
    image = np.full((48, 72, 3), 100, np.uint8)
    image[:24] = 200
    augmenter = Augmenter(policy, 0, CAR)
    for epoch in range(40):
        brightness = augmenter(image, image[..., 0], epoch, "a")[0].mean(axis=2)
        is_inside = brightness > 5  # black is the border
        middle = (brightness[is_inside].min() + brightness.max()) / 2
        bright, dark = brightness > middle, is_inside & (brightness <= middle)
        assert np.argwhere(bright)[:, 0].mean() + 8 < np.argwhere(dark)[:, 0].mean()


def test_flips_policy_mirrors_along_both_axes():
    image, target = car_image_and_target()
    augmenter = Augmenter("flips", 0, CAR)
    pairs = [augmenter(image, target, epoch, "a") for epoch in range(40)]
    views = {(x, y): (image[::y, ::x], target[::y, ::x]) for x in (1, -1) for y in (1, -1)}
    found = {
        flips
        for new_image, new_target in pairs
        for flips, (flipped, flipped_target) in views.items()
        if np.array_equal(new_image, flipped) and np.array_equal(new_target, flipped_target)
    }
    assert found == set(views)


@pytest.mark.parametrize("policy", ["light", "strong"])
def test_zoom_keeps_the_proportions_of_the_image(policy):
    image, target = car_image_and_target()
    [affine] = [transform for transform in POLICIES[policy] if isinstance(transform, A.Affine)]
    warp, scales = A.Compose([A.Affine(**affine.get_transform_init_args() | {"p": 1})]), set()
    for seed in range(5):
        warp.transforms[0].set_random_seed(seed)
        warp(image=image, mask=target)
        scale = warp.transforms[0].get_applied_params()["scale"]
        assert scale["x"] == scale["y"]
        scales.add(scale["x"])
    assert len(scales) == 5


def test_transforms_of_a_policy_draw_different_random_numbers():
    """Each of the five of `paper` changes a tenth of the images: 59% stay as they are."""
    image, target = car_image_and_target()
    augmenter = Augmenter("paper", 0, CAR)
    new_images = [augmenter(image, target, epoch, "a")[0] for epoch in range(300)]
    assert 0.5 < np.mean([np.array_equal(new, image) for new in new_images]) < 0.68


def test_flip_policy_mirrors_half_of_the_images_exactly():
    image, target = car_image_and_target()
    augmenter, n_mirrored = Augmenter("hflip", 0, CAR), 0
    for epoch in range(200):
        new_image, new_target = augmenter(image, target, epoch, "a")
        is_mirrored = not np.array_equal(new_image, image)
        n_mirrored += is_mirrored
        assert np.array_equal(new_target, target[:, ::-1] if is_mirrored else target)
        assert np.array_equal(new_image, image[:, ::-1] if is_mirrored else image)
    assert 70 < n_mirrored < 130


def test_crop_takes_the_same_part_of_image_and_target_everywhere_in_the_image():
    image, _ = car_image_and_target()
    height, width = image.shape[:2]
    where = np.arange(height * width, dtype=np.int32).reshape(height, width)
    image = np.stack([where % 251, where % 241, where % 239], -1).astype(np.uint8)
    augmenter, corners = Augmenter("none", 0, CAR, crop_size=(height - 3, width - 4)), set()
    for epoch in range(200):
        crop, target = augmenter(image, image[..., 0], epoch, "a")
        assert crop.shape == (height - 3, width - 4, 3)
        assert np.array_equal(crop[..., 0], target)
        [[top, left]] = np.argwhere((image == crop[0, 0]).all(-1))
        assert np.array_equal(crop, image[top:, left:][: height - 3, : width - 4])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(4) for left in range(5)}


def test_affine_warps_image_and_soft_target_equally():
    _, mask = draw_car(0, 1, (96, 144))
    target = mask.astype(np.uint8) * 255
    affine = augment._affine(0.2, 0.1, 10, p=1)
    warp = A.Compose([affine], mask_interpolation=cv2.INTER_LINEAR)
    for seed in range(10):
        warp.set_random_seed(seed)
        warped = warp(image=np.stack([target] * 3, -1), mask=target)
        assert np.abs(warped["image"][..., 0].astype(int) - warped["mask"]).max() <= 1
        assert ((warped["mask"] > 0) & (warped["mask"] < 255)).any()


@pytest.mark.parametrize(
    ("policy", "expected"), [("paper", {3, 7, IGNORE}), ("light", {3, 7}), ("strong", {3, 7})]
)
def test_augmenter_mixes_no_classes_and_fills_a_black_border_with_ignore(policy, expected):
    image, mask = draw_car(0, 1, (48, 72))
    classes = np.where(mask, 3, 7).astype(np.uint8)
    augmenter = Augmenter(policy, 0, ROAD_AND_CAR)
    targets = [augmenter(image, classes, epoch, "a")[1] for epoch in range(40)]
    assert set(np.unique(targets)) == expected


def test_unknown_argument_of_albumentations_is_an_error():
    importlib.reload(augment)  # pytest has replaced the module's warning filter
    with pytest.raises(UserWarning, match="not valid"):
        augment.A.HorizontalFlip(probability=0.5)


def test_augmenter_of_one_class_keeps_the_edge_of_a_rotated_target_soft():
    image, target = car_image_and_target()
    augmenter = Augmenter("light", 0, CAR)
    targets = [augmenter(image, target, epoch, "a")[1] for epoch in range(20)]
    assert any(((t > 0) & (t < 255)).any() for t in targets)


def test_augmenter_leaves_the_policies_unchanged():
    image, target = car_image_and_target()
    Augmenter("light", 0, ROAD_AND_CAR, crop_size=(8, 8))
    assert Augmenter("light", 0, CAR)(image, target, 0, "a")[1].shape == (48, 72)
    [affine] = [transform for transform in POLICIES["light"] if isinstance(transform, A.Affine)]
    assert affine.fill_mask != IGNORE


@pytest.mark.parametrize(
    ("policy", "zoom", "shift", "degrees"), [("light", 0.1, 0.05, 3), ("strong", 0.25, 0.1, 10)]
)
def test_affine_of_a_policy_varies_to_both_sides(policy, zoom, shift, degrees):
    [affine] = [transform for transform in POLICIES[policy] if isinstance(transform, A.Affine)]
    assert affine.p > 0
    assert affine.scale == {"x": (1 - zoom, 1 + zoom), "y": (1 - zoom, 1 + zoom)}
    assert affine.rotate == (-degrees, degrees)
    assert affine.translate_percent == {"x": (-shift, shift), "y": (-shift, shift)}


def test_photometric_changes_are_small_in_light_and_stronger_with_some_gray_in_strong():
    image = np.full((16, 16, 3), (160, 90, 60), np.uint8)
    target = np.zeros((16, 16), np.uint8)

    def colors(policy):
        augmenter = Augmenter(policy, 0, CAR)
        return np.array([augmenter(image, target, e, "a")[0][8, 8] for e in range(200)], int)

    light, strong = colors("light"), colors("strong")
    assert (light[:, 0] > light[:, 1]).all() and (light[:, 1] > light[:, 2]).all()  # still brown
    assert strong.mean(1).std() > 1.5 * light.mean(1).std()
    is_gray = np.ptp(strong, axis=1) == 0
    assert not (np.ptp(light, axis=1) == 0).any() and 0.02 < is_gray.mean() < 0.2
