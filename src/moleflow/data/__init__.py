"""Images and data sets: decoding, layouts, and the built-in procedural products."""
