//! Bundles: images as files that are carried to another ocistern. A bundle is an OCI image layout, a directory or a tar
//! (then perhaps compressed, and cut into volumes), with a manifest of contents, `ocistern.json`, beside it:
//!
//! ```text
//! oci-layout  ocistern.json  index.json      in this order in a tar
//! blobs/ALG/HEX                              what leads to others first
//! ```
//!
//! What reads it has to do with files of strangers: nothing is taken that is not announced, has another digest than its
//! name, or is longer than it says. What it is all for, stores and daemons, it does not know.
#![warn(clippy::indexing_slicing)]

mod contents;
mod error;
mod foreign;
mod have;
mod layout;
mod reader;
mod tar;
#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that is out of bounds fails")]
mod tests;
mod volumes;
mod writer;

pub use contents::{Blob, Contents, Image, Part, Role};
pub use error::{BundleError, Fault};
pub use foreign::As;
pub use have::{Have, HaveTag};
pub use layout::{Descriptor, Index};
pub use reader::{Entry, Reader};
pub use tar::fuzzing;
pub use writer::{Form, Writer, Written};

/// Longest manifest of contents: that of some hundred thousand blobs.
const MAX_CONTENTS: u64 = 128 << 20;
/// Longest `index.json`.
const MAX_INDEX: u64 = 16 << 20;
/// Longest manifest or index of an image.
pub const MAX_MANIFEST: u64 = 16 << 20;
