"""The built-in protocols, one file each. The registry finds every file in this package."""
