//! Waitpoints, wherever they lie.
