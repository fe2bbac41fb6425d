"""Demo cars: 3-D models, rendering, and the data set made of them."""
