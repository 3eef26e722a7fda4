"""A blend baked into one file, for programs that cannot blend.

`entries` reads what is to be merged and how, `exact`, `truncated` and `weighed` are the ways, `merge` joins them. Uses
torch; knows no server.
"""
