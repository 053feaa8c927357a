"""Trunks: classification networks without their last layer, each with features at strides 8, 16 and 32.

To add one, write a file here with a subclass of `Backbone` (features.py), add its name to `BACKBONES` (fcn/model.py)
and, for published weights, a converter to `CONVERTERS` (imagenet.py). Its first argument is `padding`, and its first
child is `pixels`, a PixelNormalization. `Model` (pipeline/config/model.py) needs its name as well, and an option that
no other backbone has. Crop offsets and kernels follow from its layers.
"""
