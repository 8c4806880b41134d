"""Paging, tried on what the user has: what `pagemove page` does."""
