"""placeholder"""
from mesh import __version__
print(__version__)
