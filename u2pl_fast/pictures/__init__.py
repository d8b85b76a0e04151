"""Draw images, charts and HTML pages of predictions and runs."""
