//! Transitions between birth and end: queue, delay, checkpoint, waiting.
