"""Bringing published files: resumed, verified before use, from the first mirror that has them."""
