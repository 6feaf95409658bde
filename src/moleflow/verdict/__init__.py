"""What is said of an image beyond its score."""
