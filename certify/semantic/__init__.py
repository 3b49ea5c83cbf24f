"""Certificates against changes of an image that are no ball: colour, rotation, shift, scale, a patch, a rectangle that moves."""
