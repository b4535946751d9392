//! TODO-cli: being written.
