//! What went wrong elsewhere, and what stops it here.
