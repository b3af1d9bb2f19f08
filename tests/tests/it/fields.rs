//! Single fields of a run.
