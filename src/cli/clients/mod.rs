//! Files of clients, for `setup`, which writes them, and `doctor`, which reads them.

mod error;
pub(super) mod folder;
mod position;
mod tree;

pub(super) use self::error::FileError;
pub(super) use self::position::position;
pub(super) use self::tree::{Place, Spot, Tree};
