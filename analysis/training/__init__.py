"""One training recipe and one loop, the same for every network of a study and for ImageNet."""
