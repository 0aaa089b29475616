"""The relearn attack: fine-tune on a few forget stories, and see how much of the capability comes back, and how fast."""
