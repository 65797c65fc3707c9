"""Screen a record of the challenge that pgolf did not make: its claims, logs, sizes and script against each other."""
