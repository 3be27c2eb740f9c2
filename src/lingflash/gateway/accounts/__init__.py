"""Keys, budgets, limits, stored vendor keys, sessions and the ledger of a gateway.

accounts = await open_accounts(AccountsConfig(database="sqlite:///gateway.db"))
...                       # what gateway/accounting.py draws
await accounts.close()

service.py    LedgerAccounts, which is the Accounts of accounting.py
ledger.py     admissions and settlements, many to a transaction
balance.py    what one budget has, owes and has spent; no database
leases.py     beats of living processes, what dead ones left, progress of streams
rates.py      requests and tokens per minute, in memory or in Redis
keys.py       keys of this gateway; vault.py: keys of vendors that users stored
sessions.py   turns, pins and parts; parts.py: a request's parts and session, by content
bill.py       what a session cost, and for what
"""
