//! HTTP as both sides of the proxy speak it: frames of bodies and the crossing between versions.

pub(crate) mod agreed;
pub(crate) mod convert;
pub(crate) mod estimate;
pub(crate) mod flow;
pub(crate) mod frames;
pub(crate) mod h2_body;
pub(crate) mod payload;
pub(crate) mod received;
pub(crate) mod stream;
pub(crate) mod tunnel;
pub(crate) mod unread;
pub(crate) mod upgrade;
pub(crate) mod windows;
pub(crate) mod writes;
