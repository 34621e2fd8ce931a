"""Observations to calls, charges, ledger, rollups and budgets: the only place where money is written."""
