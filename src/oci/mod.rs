//! The vocabulary of the OCI distribution specification, as types: digests, names, media types, manifests, error codes.
//!
//! Pure: no I/O, no clock, no configuration. Everything that comes from the network is parsed into one of these
//! types at the edge, and inner code takes no bare strings for them.
#![warn(clippy::indexing_slicing)]

mod digest;
mod error;
mod manifest;
pub mod media;
mod name;
mod parts;
mod platform;
mod scope;
mod sizes;
mod via;

pub use digest::{Algorithm, Digest, Hasher, InvalidDigest, hex};
pub use error::{ErrorBody, ErrorCode, ErrorEntry};
pub use manifest::{ManifestFault, ManifestInfo};
pub use name::{InvalidName, Reference, RepoName, Tag, UpstreamName};
pub use parts::{BlobPart, InvalidPlatform, ManifestPart, Parts, Platform, Platforms};
pub use platform::platforms;
pub use scope::{Action, Actions, InvalidScope, Resource, Scope};
pub use sizes::sizes;
pub use via::Via;
