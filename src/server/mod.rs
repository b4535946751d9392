//! TODO-server: being written.
