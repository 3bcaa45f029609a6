"""What a classifier or a feature extractor makes of image files."""
