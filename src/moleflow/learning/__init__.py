"""A lesson: from good images of a product to a line that knows it."""
