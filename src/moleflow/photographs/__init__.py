"""What a folder of good photographs is worth, before anything is learned from them."""
