"""New words: vectors that stand in captions where a word is written, and learn while the base stays as it is.

Takes a base and TokenSettings; gives parameters, text encoders that read them, and embedding files. Knows no loop.
"""
