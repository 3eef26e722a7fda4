"""The forms in which adapters leave the store: kohya's, diffusers' and PEFT's.

`factors` reads a compiled file back, `kohya`, `peft` and `vectors` name what a form can say, `container` writes it,
`export` joins them. Uses torch, as `loramux_store.formats` does; knows no catalog and no uploads.
"""
