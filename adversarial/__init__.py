"""Home of the attacks and of the threat sets they stay in. It holds none yet.

What lands here takes a module that returns logits and knows nothing of reprogramming or of molecules.
"""
