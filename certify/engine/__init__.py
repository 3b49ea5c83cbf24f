"""What bounds are made of: a model as a flat graph, a rule for each operation, lines carried backwards through them."""
