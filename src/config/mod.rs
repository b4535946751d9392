//! TODO-config: being written.
