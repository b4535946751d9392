//! TODO-upstream: being written.
