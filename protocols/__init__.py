"""The protocols: one file each, found by the registry."""
