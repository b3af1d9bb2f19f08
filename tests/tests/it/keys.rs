//! Idempotency keys: look-up and clearing.
