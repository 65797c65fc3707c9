"""Text to a file of as many bits as a model needs for it, and back: arithmetic coding driven by the model."""
