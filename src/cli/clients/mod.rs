//! Files of clients, for `setup`, which writes them, and `doctor`, which reads them.

pub(super) mod containerd;
mod error;
pub(super) mod folder;
mod position;
mod tree;
mod whose;

pub(super) use self::error::FileError;
pub(super) use self::position::position;
pub(super) use self::tree::{Place, Spot, Tree, Way};
pub(super) use self::whose::Whose;
