"""The program inside an artifact: it scores, trains and shows itself. `build` bundles it, `ledger` counts its bytes."""
