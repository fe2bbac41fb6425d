"""From networks and images to probabilities, masks and run lengths."""
