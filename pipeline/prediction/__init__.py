"""Predictions for photos."""
