"""Which product is in the picture, or none that was taught."""
