//! Waitpoint tags.
