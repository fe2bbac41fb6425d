"""Render the demo dataset: cars on a turntable, in the competition's layout.

    python src/demo.py recipe=demo

Writes to data_dir, which must be missing or empty. With it, all scripts run without a download.
"""

from pathlib import Path

from core import cli, config
from core.errors import InputError
from core.overrides import parse_overrides

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

from data.demo_cars.dataset import write_demo_dataset


def main(args: list[str]) -> None:
    settings = config.load_settings(args)
    if not {"recipe", "data_dir"} & parse_overrides(args).keys():
        raise InputError("set recipe=demo, or data_dir=<new folder>")
    folder = Path(settings.data_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"data_dir={folder}: exists and is not empty; delete it or set another")
    write_demo_dataset(folder, settings.demo_cars, settings.demo_test_cars, settings.seed)


if __name__ == "__main__":
    cli.run_main(main)
