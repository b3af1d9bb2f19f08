//! Execution snapshots: the log and its readers.
