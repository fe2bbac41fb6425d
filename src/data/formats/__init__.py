"""One file per dataset: its files, classes, mask decoding, test split and fold strata."""
