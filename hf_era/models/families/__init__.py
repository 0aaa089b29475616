"""The families of causal LMs that can be expanded, one file each."""
