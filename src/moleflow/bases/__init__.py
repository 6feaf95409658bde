"""Bases that come with the library."""
