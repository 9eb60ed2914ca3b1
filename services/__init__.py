"""The four services of the execution control plane and what they share; it holds no code of its own."""
