//! The hook inside the transaction.
