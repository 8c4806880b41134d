"""Paged memory: arrays larger than memory, whose blocks come from a store when they are touched."""
