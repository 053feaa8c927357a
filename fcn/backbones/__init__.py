"""Trunks: classification networks without their last layer, each with taps at strides 8, 16 and 32."""
