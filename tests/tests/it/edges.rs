//! Block edges: which run waits for which waitpoint.
