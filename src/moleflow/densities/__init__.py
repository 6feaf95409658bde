"""What stands beside the flow: remembered patches, the picture as a whole, what known defects teach."""
