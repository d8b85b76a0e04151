"""Pictures, charts and pages: tensors and numbers in, images and HTML out."""
