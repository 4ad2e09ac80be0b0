//! End-to-end journeys against the real kernel.
