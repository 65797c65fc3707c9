"""What stage directories hold, opened: models, tokens, tokenizers. `front` is pgolf's Python interface."""
