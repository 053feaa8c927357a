"""Samples, and the WebDataset tars that hold them."""
