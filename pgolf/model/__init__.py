"""The GPT and its parts."""
