"""Which pixels a unit sees: by theory, and by the gradient."""
