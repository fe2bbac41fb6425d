"""Settings → a network that gives logits for images of any size.

`python src/models.py recipe=...` prints it as a table.
"""

import sys

import torchinfo

from core import cli, config
from data.classes import get_class_map
from models.build import build_model


def main() -> None:
    """Print the network of the settings, layer by layer, for one image of its size."""
    settings = config.load_settings(sys.argv[1:])
    segmenter = build_model(settings, len(get_class_map(settings).names), pretrained=False)
    sides = [segmenter.frame(side)[0] for side in settings.size or (1280, 1918)]
    summary = torchinfo.summary(
        segmenter.network,
        (1, 3, *sides),
        col_names=("output_size", "num_params"),
        row_settings=("depth", "var_names"),
        depth=3,
        verbose=0,
    )
    print(summary)


if __name__ == "__main__":
    cli.run_main(main)
