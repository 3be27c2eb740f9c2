"""The gateway's file: what its tables may hold, and how they are read.

config = load_config(Path("gateway.toml"), os.environ)

tables.py   every table and key, as settings
load.py     the whole file: read by `core/toml_tables.py`, and what tables say of each other
"""
