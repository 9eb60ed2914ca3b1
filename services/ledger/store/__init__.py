"""What the ledger keeps in PostgreSQL, a module and a file of SQL per resource; nothing else here knows SQL."""
