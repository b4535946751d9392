//! TODO-store: being written.
