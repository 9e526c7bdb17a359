"""koala-tiny: the pictures it learns from, its models and its training."""
