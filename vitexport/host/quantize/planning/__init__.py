"""What to quantize and how: layers, exact transforms, clipping thresholds, attention, layers to keep in float."""
