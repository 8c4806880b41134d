"""A limit for the arrays of a whole program: what `pagemove run` does."""
