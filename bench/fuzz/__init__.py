"""Mutated bytes against the front door, millions of them: nothing may crash, grow, or be taken without a signature."""
