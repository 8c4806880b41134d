"""remap_anon_pages and its relatives: one file a call, and what they share."""
