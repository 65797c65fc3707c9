"""Readers of stage directories: models, tokens, tokenizers. `front` is pgolf's Python interface."""
