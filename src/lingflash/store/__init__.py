"""Tables and their migrations: SQLite for one process, PostgreSQL for several."""
