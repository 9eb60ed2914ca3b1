"""The main job, whole, on one machine: masters trade real prices, subscribers follow, and the books are reconciled."""
