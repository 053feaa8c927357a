"""Trains one net of the chain."""
