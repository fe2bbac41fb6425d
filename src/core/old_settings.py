"""Settings of earlier versions: old names in weights and config.yaml are replaced, and settings
that no longer exist are ignored.

An old name on the command line or in a recipe is an error that suggests the new one.
"""

from typing import Any

# Old name → today's.
RENAMED = {
    "amp": "precision",
    "accumulate": "grad_accumulation",
    "augment": "augmentation",
    "batch": "batch_size",
    "best_by": "checkpoint_metric",
    "border": "trimap_border",
    "classes": "cityscapes_classes",
    "clip": "grad_clip",
    "dataset": "dataset_name",
    "decoder": "decoder_channels",
    "ema": "ema_decay",
    "fit": "resize_mode",
    "group_by": "group_regex",
    "hq": "use_hq_images",
    "init": "weight_init",
    "k": "n_folds",
    "layout": "dataset_format",
    "limit": "max_images",
    "lr_batch": "lr_reference_batch",
    "lr_rule": "lr_scaling",
    "masks": "save_masks",
    "overlap": "tile_overlap",
    "prepare": "prepare_scripts",
    "quantize": "reduce_colors",
    "schedule": "lr_schedule",
    "skip_bad": "skip_unreadable",
    "snapshot_every": "snapshot_seconds",
    "stem": "space_to_depth",
    "submission": "submission_csv",
    "tail": "refine_channels",
    "tile": "tile_size",
    "truth": "truth_csv",
    "unsure": "label_color_tolerance",
    "up": "upsampling",
    "ups": "upsample_channels",
    "validate_every": "validate_every_epochs",
    "workers": "num_workers",
}
RENAMED_VALUES = {
    ("augmentation", "flip"): "hflip",
    ("upsampling", "nearest"): "nearest_conv",
}
REMOVED = {
    "augment_on",
    "bench_baselines",
    "bench_minutes",
    "compare",
    "decode",
    "jpeg_decode",
    "minutes",
}
# Removed settings → the value that means what today's code does; other values stay unknown.
ONLY_VALUES = {"convs": 2, "convs_per_level": 2, "dilated_bottom": 0, "full_size_skip": 0}


def rename_old_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with old names replaced, and removed settings and values dropped."""
    values = {RENAMED.get(name, name): v for name, v in values.items() if name not in REMOVED}
    values = {name: v for name, v in values.items() if (name, v) not in ONLY_VALUES.items()}
    if isinstance(steps := values.get("postprocess"), str):  # there was a step `hull`
        values["postprocess"] = ",".join(s for s in steps.split(",") if s != "hull") or "none"
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = RENAMED_VALUES.get((name, value), value)
    if isinstance(stages := values.get("stages"), list):
        are_dicts = all(isinstance(stage, dict) for stage in stages)
        values["stages"] = [*map(rename_old_settings, stages)] if are_dicts else stages
    return values
