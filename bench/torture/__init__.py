"""Kills processes under load, again and again, and then holds the log against what was acknowledged."""
