"""The gateway's file: what its tables may hold, and how they are read.

config = load_config(Path("gateway.toml"), os.environ)

tables.py   every table and key, as settings
reader.py   TOML to tables: unknown keys, wrong types and values outside of bounds are refused
load.py     the whole file: secrets, and what tables say of each other
"""
