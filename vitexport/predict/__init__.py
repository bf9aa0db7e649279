"""Images in, classes or features out: the predictor, many images at once, and jobs that survive a kill."""
