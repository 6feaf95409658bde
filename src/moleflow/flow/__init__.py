"""The normalizing flow: a shared base and one expert per product."""
