"""Certificates of smoothed models: a vote over noise, masks, substitutions, rewritings or transformations."""
