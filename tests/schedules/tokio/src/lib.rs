//! What stands for tokio where schedules are explored: shuttle's tasks and channels, and a time that the explorer owns.

pub use shuttle_tokio_impl_inner::{select, spawn, sync, task};

pub mod time;
