"""A line: everything learned so far, what it says of an image, and its folder."""
