"""The methods: one file each, found by the registry; the file is the method."""
