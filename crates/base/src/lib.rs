//! The words every other crate speaks: names and ids that cannot be confused with each other, SPIFFE IDs,
//! revisions, error codes, and the two things that must be *given* and are never global: time and chance.
//!
//! A function that needs the time takes a [`Clock`], one that needs a random choice takes a [`Rng`]. That makes
//! every state machine of the house runnable under a fake clock with a printed seed.
//!
//! This crate stays small (under 600 lines) because touching it rebuilds everything above it.

pub mod chance;
pub mod clock;
pub mod code;
pub mod name;
pub mod revision;
pub mod sorted;
pub mod spiffe;

pub use chance::{Rng, SeededRng, ThreadRng};
pub use clock::{Clock, ManualClock, SystemClock, Tick};
pub use code::Code;
pub use name::{InstanceId, NameError, Namespace, ObjectName, QualifiedName};
pub use revision::{ContentHash, Revision};
pub use sorted::{differences, pack};
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
