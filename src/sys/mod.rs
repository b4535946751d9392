//! What the system offers only to `unsafe` code, behind safe functions: all of it is in this module, and every block
//! says why it is sound.

pub(crate) mod allocator;
pub(crate) mod mapping;
pub(crate) mod read_now;
pub(crate) mod write_out;
