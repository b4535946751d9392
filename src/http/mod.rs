//! TODO-http: being written.
