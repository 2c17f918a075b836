//! What the process of every role has, whatever it does: settings, readiness, signals, drain, an admin port and the
//! shape of API errors.
//!
//! ```text
//! arguments, MESHWORK_*, --settings FILE ──► parse_args ──► CommonArgs ──► role starts
//!                                                                          │ Readiness: conditions become true
//! SIGTERM ──► Drain: stop accepting ─► GOAWAY ─► wait until idle or timeout ─► exit 0
//! AdminServer (own thread): /healthz/live /healthz/ready /metrics /loglevel + what the role adds;
//!                           once ready and after growth, what is not needed is given back
//! ```

pub mod admin;
pub mod caller;
pub mod cpus;
pub mod descriptors;
pub mod drain;
mod giving_back;
pub mod local;
#[cfg(test)]
mod machine;
mod memory;
pub mod observed;
pub mod ports;
pub mod problem;
pub mod readiness;
pub mod settings;
pub mod traces;

pub use admin::{AdminAddresses, AdminArgs, AdminError, AdminServer, AdminState};
pub use caller::Caller;
pub use drain::{Drain, DrainGuard, Drained};
pub use local::{by_address, is_called_by_address};
pub use memory::{MemoryMeter, give_memory_back, gives_memory_back, memory_limit, resident_memory};
pub use observed::Observed;
pub use problem::Problem;
pub use readiness::{Condition, Readiness};
pub use settings::{CommonArgs, ListenArgs, SettingsError, parse_args, parse_duration};
pub use traces::{TraceArgs, TraceArgsError};
