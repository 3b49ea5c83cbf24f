"""Certificates and estimates by how steep a model can be."""
