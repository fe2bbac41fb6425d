"""Print the network of the settings as a table: layers, output shapes, parameters.

`python src/model_summary.py recipe=carvana_small`, or run=<a run> for the settings of a run.
"""

import re

from core import cli, run_folder
from core.config import load_settings
from core.errors import InputError
from core.overrides import parse_overrides

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import torch
import torchinfo
from torch.utils.flop_counter import FlopCounterMode

from data.datasets import get_class_map
from data.formats.carvana import IMAGE_SIZE
from inference import load_runs
from models.build import build_model


def main(args: list[str]) -> None:
    settings, overrides = load_settings(args), parse_overrides(args)
    if "runs" in overrides:
        raise InputError("runs: this shows a single network; set run=")
    if "run" in overrides:
        stored = load_runs.read_trained_settings(settings.run_dir)
        settings = load_settings(args, stored, run_folder.config_path(settings.run_dir))
    model = build_model(settings, len(get_class_map(settings).names), pretrained=False)
    height, width = map(model.input_size, settings.size or IMAGE_SIZE)
    summary = torchinfo.summary(
        model.network.to("meta"),  # computes shapes only
        (1, 3, height, width),
        device="meta",
        col_names=("output_size", "num_params"),
        row_settings=("depth", "var_names"),
        depth=3,
        verbose=0,
    )
    # torchinfo counts transposed convolutions several times, torch does not.
    print(re.sub(r"Total mult-adds.*\n", "", str(summary)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.network.eval()(torch.empty(1, 3, height, width, device="meta"))
    print(f"forward pass of one image: {counter.get_total_flops() / 1e12:.3g} TFLOP")


if __name__ == "__main__":
    cli.run_main(main)
