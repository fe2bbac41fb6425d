"""EpochLog: history.csv, TensorBoard, the console line of each epoch, and the progress bar."""

from functools import cached_property
from typing import Any

import pandas as pd
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from core import run_folder
from core.files import atomic_write
from core.settings import Settings
from data.classes import ClassMap
from data.image_io import write_image
from evaluation import visualize


class EpochLog:
    """The log of one fold: history.csv, TensorBoard and console lines, and a progress bar.

    Only the main process writes rows. Every process has a progress bar.
    """

    def __init__(self, settings: Settings, fold: int):
        self.settings, self.fold, self.rows = settings, fold, []

    @cached_property
    def writer(self) -> SummaryWriter:
        """TensorBoard writer in the fold's folder."""
        folder = run_folder.fold_dir(self.settings.run_dir, self.fold)
        return SummaryWriter(folder / "tensorboard")

    def progress_bar(self, steps: int, done: int, step_size: int) -> tqdm:
        """Return a bar of the fold's images; it is shown only if stderr is a terminal."""
        sizes = {"total": steps * step_size, "initial": done * step_size}
        return tqdm(desc=f"fold {self.fold}", unit="image", disable=None, **sizes)

    def save_first_batch(self, images: Tensor, targets: Tensor, class_map: ClassMap) -> None:
        """Draw the first training batch as the network gets it, in first_batch.jpg."""
        folder = run_folder.fold_dir(self.settings.run_dir, self.fold)
        write_image(folder / "first_batch.jpg", visualize.draw_batch(images, targets, class_map))

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Write the epoch's row to history.csv and TensorBoard, and print it."""
        self.rows.append(row)
        path = run_folder.history_path(self.settings.run_dir, self.fold)
        with atomic_write(path) as tmp_path:
            pd.DataFrame(self.rows).to_csv(tmp_path, index=False)
        for name, value in row.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()  # a killed process would lose the last two minutes
        dice = f"val_dice {row['val_dice']:.5f}  " if "val_dice" in row else ""
        tqdm.write(
            f"fold {self.fold}  epoch {row['epoch']:>3}/{self.settings.epochs}  "
            f"loss {row['loss']:.4f}  {dice}lr {row['lr']:.2e}  "
            f"{row['images_per_second']:.1f} images/s"
        )
