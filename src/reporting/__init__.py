"""The HTML report, and the images that predict.py writes for photographs."""
