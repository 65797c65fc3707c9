"""The artifact that runs by itself: which code it needs, how that becomes one file, and what it all weighs."""
