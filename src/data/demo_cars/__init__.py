"""Demo cars: 3-D models, rendering, and the dataset made of them."""
