"""Training in stages: progressive image size, fine-tuning."""

from dataclasses import replace
from itertools import pairwise

from core.settings import Settings


def split_stages(settings: Settings) -> list[Settings]:
    """Return the settings of each stage. `settings` already contains those of the last stage
    (core/config.py), which is the run itself; each one before it is a run of its own in the folder
    output/<run>/stage<n>."""
    earlier = [
        replace(settings, **overrides, run=f"{settings.run}/stage{number}", stages=[])
        for number, overrides in enumerate(settings.stages[:-1], 1)
    ]
    for previous, stage in pairwise(earlier):
        stage.init_run = previous.run
    return [*earlier, settings]


def find_init_run(settings: Settings) -> str:
    """Return the run whose weights training starts from: the stage before, else init_run."""
    earlier = len(settings.stages) - 1
    return f"{settings.run}/stage{earlier}" if earlier > 0 else settings.init_run
