"""Step 2: the classifier on the frozen model's features."""
