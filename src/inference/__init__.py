"""From networks and images to probabilities, masks and run lengths.

from inference import load

model = load("output/carvana_fast")
mask = model("car.jpg").mask
"""

from inference.trained_model import load

__all__ = ["load"]
