"""Weights from and for Caffe, without Caffe."""
