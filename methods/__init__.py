"""The built-in methods, one file each. The registry finds every file in this package."""
