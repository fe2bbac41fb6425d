"""Measure how fast recipes train and predict here.

    python src/bench.py data_dir=input/carvana              # on a GPU: carvana_smp and carvana
    python src/bench.py recipe=carvana_small                # another recipe
    python src/bench.py bench_recipes=carvana,carvana_small # several

Prints the time of every step and a table in Markdown, and writes output/bench.json. An interrupted
benchmark still writes what it has measured.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core import cli

if __name__ == "__main__":
    cli.check_arguments()  # before the imports that take seconds

import pandas as pd
import torch

from benchmark import measurements
from core import provenance
from core.config import check_options, load_settings
from core.device import pick_device
from core.errors import InputError
from core.files import atomic_write_json
from core.overrides import parse_overrides
from core.settings import Settings
from core.text import to_markdown
from data import datasets
from data.sample import Sample
from training import preflight

DEFAULT_RECIPES = {"cuda": ["carvana_smp", "carvana"], "cpu": ["carvana_small"]}
MAX_LOOP_IMAGES = 64  # images that the training and prediction loops repeat


def recipes_to_measure(args: list[str]) -> dict[str, Settings]:
    """Return recipe name → settings of `args` with this recipe."""
    settings = load_settings(args)
    default = DEFAULT_RECIPES[pick_device(settings).type]
    named = [settings.recipe] if "recipe" in parse_overrides(args) else default
    names = settings.bench_recipes or named
    recipes = {name: load_settings([*args, f"recipe={name}"]) for name in names}
    for settings in recipes.values():
        check_options(settings, args)
    return recipes


def load_data(settings: Settings) -> tuple[Settings, list[Sample]]:
    """Return the settings of a recipe, and its training samples.

    size=null becomes the size of the images, and fold=null the first fold. Raises InputError if the
    recipe cannot be trained on the samples or cannot be measured.
    """
    if settings.cache == "none":
        raise InputError("cache=none: bench.py measures training on decoded images; leave it out")
    samples = datasets.load_training_samples(settings)
    fold = min(s.fold for s in samples) if settings.fold is None else settings.fold
    _, sizes = preflight.check_data(settings, samples)
    preflight.check_sizes(settings, sizes)
    if settings.size is None and len(sizes) > 1:
        raise InputError(f"{settings.data_dir}: has images of {len(sizes)} sizes; set size=h,w")
    settings = replace(settings, size=list(settings.size or min(sizes)), fold=fold)
    with TemporaryDirectory() as folder:  # not output_dir, where the recipe may have a run
        preflight.check_folds(measurements.make_trial(settings, folder), [fold], samples, sizes)
    return settings, samples


# ---------------------------------------------------------------- measurements


def measure_all(recipes: dict[str, tuple[Settings, list[Sample]]], report: dict[str, Any]) -> None:
    """Add the measurements of each recipe to the report."""
    for name, (settings, samples) in recipes.items():
        n_training = sum(sample.fold != settings.fold for sample in samples)
        chosen = samples[:: max(1, len(samples) // MAX_LOOP_IMAGES)][:MAX_LOOP_IMAGES]
        result = measurements.measure_recipe(settings, chosen, n_training)
        if pick_device(settings).type == "cpu" and report["recipes"]:
            result = result | {"peak_gib": None}  # the process has one peak for all recipes
        report["recipes"][name] = result


# ---------------------------------------------------------------- output


def format_row(name: str, machine: dict[str, Any], result: dict[str, Any]) -> dict[str, str]:
    """Format a recipe's result as a row of the table, by column."""
    rate = result["training_images_per_second"]
    plain = result["plain_training_images_per_second"]
    tflops, largest = result["training_tflops"], result["matrix_product_tflops"]
    device = machine["gpu"] or f"{machine['threads']} threads on {machine['cpu']}"
    return {
        "recipe": f"`{name}`",
        "device": f"{device}, {result['precision']}, batch {result['settings']['batch_size']}",
        "training, images/s": f"{rate:.1f}",
        "busy in training": f"{result['training_busy']:.0%}",
        "TFLOP/s (of a matrix product)": f"{tflops:.3g} ({tflops / largest:.0%})",
        "times a plain loop": f"{rate / plain:.1f}" if plain else "–",
        "peak GiB": f"{result['peak_gib']:.1f}" if result["peak_gib"] else "–",
        "prediction, images/s": f"{result['prediction_images_per_second']:.1f}",
        "busy in prediction": f"{result['prediction_busy']:.0%}",
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the time of each step and a table in Markdown."""
    machine = report["machine"]
    for name, result in report["recipes"].items():
        lines = [f"{name:<16} {step:<32} {ms:10.3f} ms" for step, ms in result["ms"].items()]
        print(*lines, sep="\n")
    rows = [format_row(name, machine, result) for name, result in report["recipes"].items()]
    print("", to_markdown(pd.DataFrame(rows)), sep="\n")
    description = ", ".join(f"{name} {value}" for name, value in machine.items() if value)
    print(f"{description}: {report['command']}")


def main(args: list[str]) -> None:
    recipes = {name: load_data(settings) for name, settings in recipes_to_measure(args).items()}
    settings, _ = next(iter(recipes.values()))
    torch.set_float32_matmul_precision("high")
    report = {
        "command": shlex.join(["python", "src/bench.py", *args]),
        "machine": provenance.describe_machine(pick_device(settings)),
        "recipes": {},
    }
    try:
        measure_all(recipes, report)
    finally:  # also after Ctrl-C, or if there is too little memory for the second recipe
        if report["recipes"]:
            print_report(report)
            atomic_write_json(Path(settings.output_dir) / "bench.json", report)


if __name__ == "__main__":
    cli.run_main(main)
