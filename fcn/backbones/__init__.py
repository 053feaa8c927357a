"""Trunks: classification networks without their last layer, each with features at strides 8, 16 and 32.

To add one: a file here with a subclass of `Backbone` (features.py), its name in `BACKBONES` (fcn/model.py) and, for
published weights, a converter in `CONVERTERS` (imagenet.py). Crop offsets and kernels follow from its layers.
"""
