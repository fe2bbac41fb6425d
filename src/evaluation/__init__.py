"""Out-of-fold scores, ensembles and comparisons."""
