"""Datasets: file formats, folds, decoding, augmentation, cache and batches."""
