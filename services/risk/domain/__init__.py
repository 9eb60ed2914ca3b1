"""The rules of risk, pure: outcomes, the trust model, the ladder, explanations."""
