"""Takes what subscribers did with each signal, scores their trust, and pauses toxic flow with evidence."""
