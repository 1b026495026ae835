"""The built-in data sets, one file each. The registry finds every file in this package."""
