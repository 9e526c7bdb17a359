"""The protocols that clients speak, one file each."""
