"""The rendered cars of the demo data set."""
