"""The frozen backbone: images in, patch features out."""
