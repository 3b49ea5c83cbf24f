"""Home of the robustness certificates: proofs and estimates over a threat set. It holds none yet.

What lands here takes a module that returns logits and knows nothing of reprogramming or of molecules.
"""
