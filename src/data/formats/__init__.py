"""One file per data set: its files, classes, mask decoding, test split and fold strata."""
