"""Models by name with their preprocessing, their layers, their size, and files of them."""
