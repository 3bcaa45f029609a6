"""Self-contained pages of results: one template, figures in the colours of the page, small scripts to explore them."""
