"""Certifiers by linear bounds: intervals, CROWN and its kin, branch and bound, CNN-Cert, the dual, envelopes."""
