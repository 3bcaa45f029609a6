"""Images: files and folders, generated ones, published stimuli, and their way to a network."""
