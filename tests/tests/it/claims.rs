//! One idempotency key, one live run, whichever databases are asked.
