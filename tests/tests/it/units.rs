//! Units of work that a caller puts together.
