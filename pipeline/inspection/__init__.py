"""The content of a data set, and the images that its splits share."""
