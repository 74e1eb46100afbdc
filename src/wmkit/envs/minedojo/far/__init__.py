"""What runs in MineDojo's own interpreter, Python 3.9 to 3.11: the standard library, numpy, and MineDojo.

Nothing here imports wmkit; ``python far`` (the folder) is the server process.
"""
