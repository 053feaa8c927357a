"""What a data set holds, and which images its splits share."""
