//! TODO-cache: being written.
