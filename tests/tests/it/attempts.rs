//! Attempts of the old engine.
