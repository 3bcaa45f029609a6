"""Everybody's weight files.

`naming` knows their keys, `reading` reads them, `describing` says which architecture they are of, `published` fetches
the published ones.
"""
