"""The relearn attack: fine-tune on a few forget examples, and see how much of the capability comes back, and how fast."""
