"""Tables, migrations and one way to SQLite and PostgreSQL, for rooms that must not forget."""
