"""Small datasets in the layouts of Carvana, Oxford-IIIT Pet and Cityscapes, drawn from seeds."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms

ROAD, CAR = 7, 26  # label ids of Cityscapes
ROAD_COLOR, CAR_COLOR = (128, 64, 128), (0, 0, 142)


def draw_car(seed: int, view: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw a dark ellipse on light ground: uint8 H×W×3 image and its bool H×W mask."""
    height, width = size
    rng = np.random.default_rng([seed, view])
    center = np.array([width, height]) * rng.uniform(0.4, 0.6, 2)
    radii = np.array([width, height]) * rng.uniform(0.2, 0.35, 2)
    y, x = np.mgrid[:height, :width]
    mask = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1
    image = rng.normal(200, 8, (height, width, 3))
    image[mask] -= rng.uniform(90, 150, 3)
    return image.clip(0, 255).astype(np.uint8), mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a palette GIF of 0 and 1, as the competition's masks are."""
    gif = Image.fromarray(mask.astype(np.uint8), "P")
    gif.putpalette([0, 0, 0, 255, 255, 255])
    gif.save(path)


def write_test_masks(data_dir: Path) -> None:
    """Write the masks of test_truth.csv into test_masks/."""
    from data import rle

    (data_dir / "test_masks").mkdir()
    for line in (data_dir / "test_truth.csv").read_text().splitlines()[1:]:
        name, text = line.split(",")
        height, width = cv2.imread(str(data_dir / "test" / name)).shape[:2]
        mask = rle.decode(text, (height, width))
        write_mask(data_dir / "test_masks" / f"{Path(name).stem}_mask.gif", mask)


def remove_image(data_dir: Path) -> None:
    """Delete a training image and its mask."""
    image = next(data_dir.glob("train/*_01.jpg"))
    image.unlink()
    (data_dir / "train_masks" / f"{image.stem}_mask.gif").unlink()


def make_data(
    folder: Path,
    cars: int = 4,
    test_cars: int = 2,
    views: int = 3,
    size: tuple[int, int] = (48, 72),
    folds: int = 2,
) -> Path:
    """Write a dataset in the competition's layout, with folds.csv and test_truth.csv."""
    from data import rle

    for name in ("train", "train_masks", "test"):
        (folder / name).mkdir(parents=True)
    truth = ["img,rle_mask"]
    for car in range(cars + test_cars):
        for view in range(1, views + 1):
            name = f"{car:012x}_{view:02d}"
            image, mask = draw_car(car, view, size)
            split = "train" if car < cars else "test"
            cv2.imwrite(str(folder / split / f"{name}.jpg"), image)
            if split == "train":
                write_mask(folder / "train_masks" / f"{name}_mask.gif", mask)
            else:
                truth.append(f"{name}.jpg,{rle.encode(mask)}")
    (folder / "test_truth.csv").write_text("\n".join(truth) + "\n")
    sample = [truth[0], *(line.split(",")[0] + ",1 1" for line in truth[1:])]
    (folder / "sample_submission.csv").write_text("\n".join(sample) + "\n")
    folds_csv = [f"tiny,{car:012x},{car % folds}" for car in range(cars)]
    (folder / "folds.csv").write_text("\n".join(["dataset,group,fold", *folds_csv]) + "\n")
    return folder


def make_pets(folder: Path, count: int = 9) -> Path:
    """Write Oxford-IIIT Pet: images of three breeds, trimaps with a border, and the two lists."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    breeds = ("Pug", "Basset_Hound", "Bombay")
    names = [f"{breed}_{i}" for breed in breeds for i in range(count // 3)]
    for i, name in enumerate(names):
        image, mask = draw_car(i, 0, (40, 48 + i))
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) > 0
        trimap = np.where(inner, 1, np.where(mask, 3, 2)).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"{name}.jpg"), image)
        Image.fromarray(trimap).save(folder / "annotations" / "trimaps" / f"{name}.png")
    for file, split in (("trainval.txt", names[:-2]), ("test.txt", names[-2:])):
        lines = "".join(f"{name} 1 1 1\n" for name in split)
        (folder / "annotations" / file).write_text(lines)
    return folder


def make_cityscapes(folder: Path) -> Path:
    """Write Cityscapes: two cities, labels of ids."""
    for split in ("train", "val"):
        for i in range(4):
            image, mask = draw_car(i, 0, (32, 64))
            city, name = f"city{i % 2}", f"city{i % 2}_{i:06d}_000019"
            label = np.where(mask, CAR, ROAD).astype(np.uint8)
            for kind, suffix, data in (
                ("leftImg8bit", "leftImg8bit", image),
                ("gtFine", "gtFine_labelIds", label),
            ):
                (folder / kind / split / city).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / kind / split / city / f"{name}_{suffix}.png"), data)
    return folder


def make_cityscapes_pairs(folder: Path, side: int = 48, count: int = 4) -> Path:
    """Write image pairs: a car on a road, its label in colors to the right of it."""
    for split, n_images in (("train", count), ("val", 2)):
        (folder / split).mkdir(parents=True)
        for i in range(n_images):
            image, mask = draw_car(i, 0, (side, side))
            label = np.where(mask[..., None], CAR_COLOR, ROAD_COLOR).astype(np.uint8)
            pair = np.concatenate([image, label], axis=1)
            cv2.imwrite(str(folder / split / f"{i}.jpg"), pair[..., ::-1])
    return folder


def swapped_profile():
    """Return an RGB profile: sRGB with red and green exchanged."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    return data.replace("sRGB".encode("utf-16-be"), "GRBx".encode("utf-16-be"))
