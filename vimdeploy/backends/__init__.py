"""Everything that can compute a model, behind one face."""
