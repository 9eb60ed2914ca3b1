"""Building blocks shared by two services or more; it imports no service."""
