"""Timings beside other libraries."""
