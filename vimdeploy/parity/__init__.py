"""How close two forms of one model are, and where they part."""
