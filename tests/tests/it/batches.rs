//! Batches, items and errors.
