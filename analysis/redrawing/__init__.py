"""Figures drawn anew from results as they lie in their folders, in the size and the style of a paper."""
