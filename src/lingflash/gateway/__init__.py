"""The place in front of engines and vendors where keys, limits, routes and money live.

The relay (which endpoint, which bytes) and the accounts (which key, which budget, which row) meet
in `accounting.py` alone.
"""
