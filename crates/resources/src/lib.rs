//! The language users write: Kubernetes' and Gateway API's objects and Meshwork's own policies, as YAML or JSON text.
//!
//! A newcomer's way in is [`load`]: it takes files (name and bytes), and gives back typed [`Object`]s and
//! [`Diagnostic`]s. Every diagnostic names file, line and column, what is wrong there and what would be right; an object
//! with an error is refused alone, its neighbours are not. Nothing a user wrote is ignored: a field that no standard
//! knows, or that Meshwork does not build yet, is an error at its line (`status` and `metadata.managedFields`, which
//! Kubernetes itself writes, apart).
//!
//! ```text
//! bytes ─ split ─▶ documents ─ yaml ─▶ nodes with spans ─ decode ─▶ typed object ─ validate ─▶ Object
//!   │ size, UTF-8     │ count            │ depth, aliases    │ fields, types,     │ the standard's rules
//!   ▼                 ▼                  ▼                   ▼ values, defaults   ▼ that span several fields
//!   └─────────────────┴──────────── Diagnostic { file, line, column, code, message, help } ───────────────▶
//! ```
//!
//! What a reference points to is not looked up here: that needs all objects and is the work of `compile`.

mod certificate;
mod decode;
mod diagnostic;
mod json;
mod kinds;
mod load;
mod object;
mod span;

pub mod codes;
pub mod limits;

pub use decode::duration::{GatewayDuration, LongDuration};
pub use decode::text::{
    AddressRange, ControllerName, Group, HeaderName, HeaderValue, Hostname, KindRef, PreciseHostname,
    SectionName,
};
pub use decode::timestamp::Timestamp;
pub use diagnostic::{Diagnostic, Severity, Snippet};
pub use json::to_json;
pub use kinds::*;
pub use load::{Loaded, Refused, duplicate, load, load_file, written};
pub use object::{Kind, Object, ObjectKey, ObjectKind, ObjectMeta};
pub use span::{FileName, Source, Span, Spanned};
