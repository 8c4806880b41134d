"""The argument of 2014 about remap_anon_pages, measured: what `pagemove compare` does."""
