"""Anomaly maps for the eye and for other programs: drawn over the image, or as numbers in a file."""

from .files import save_mask, save_npy, save_tiff
from .overlay import save_overlay

__all__ = ["save_mask", "save_npy", "save_overlay", "save_tiff"]
