//! The engine that carries bytes. It listens, ends TLS, speaks HTTP both ways, keeps connections to endpoints and asks
//! `meshwork_decision` at each step; it knows neither files nor Gateway API nor who runs it.
//!
//! ```text
//! listen ── one socket per worker and address           listen.rs, accept.rs, worker.rs
//! proxied ─ for whom a load balancer connects             downstream/proxied.rs, proxy_protocol.rs
//! detect ── HTTP/2 preface or HTTP/1                     downstream/detect.rs
//! tls ───── certificate by SNI, ALPN; mTLS in the mesh    downstream/handshake.rs, tls.rs
//! http ──── server connection                            downstream/{connection,h1,h2}.rs
//! route ─┐
//! filters│
//! attempt├─ one request, phase by phase                  request/
//! record ┘
//! observe ─ a request that somebody asks about: reasons told, result sent    observe.rs
//! recorder  what became of requests that are asked about later                 recorder.rs
//! usual ─── what requests ordinarily take                                      usual.rs
//! stream ── TCP and TLS that is no HTTP, from end to end  stream/
//! room ──── what makes place where memory is near its limit                     room.rs, pressure.rs
//! pool ──── connections to endpoints, per worker, by mTLS  upstream/
//! reuse ─── memory, timers and time of one request, the next one's           workspace.rs, blocks.rs, timers.rs, poll_time.rs
//! ```
//!
//! A connection comes in by a listener of the snapshot, or by one of two fixed ones ([`Engine::listen`]): what the
//! application beside us calls, and what calls it. All three take the same way; they differ in what `route` asks and in
//! what callers are believed. Between proxies it is HTTP/2 over mutual TLS; [`Mesh`] says who we are.
//!
//! [`Follower`] joins it with a control plane: each batch of changes becomes a snapshot, takes effect on all workers and
//! is reported.
//!
//! Each worker is a thread with a runtime of its own; a connection lives and dies on one worker, so nothing on a
//! request's way waits for a lock. The snapshot that decides is one pointer, taken once per request.

mod accept;
mod blocks;
mod changes;
mod checker;
pub mod client_hello;
mod connections;
mod date;
mod doors;
mod downstream;
mod engine;
mod error;
mod flags;
mod follow;
mod forces;
mod gather;
mod gauges;
mod http;
mod io;
mod listen;
mod mesh;
mod observe;
mod outq;
#[doc(hidden)]
pub mod parsers;
mod peek;
mod poll_time;
mod pressure;
pub mod proxy_protocol;
mod recorder;
mod related;
mod replay;
mod request;
mod room;
mod scraped;
mod series;
mod splice;
mod standing;
mod stats;
mod stream;
mod timers;
mod tls;
mod upstream;
mod usual;
mod views;
mod wire;
mod worker;
mod workspace;

pub use connections::DownstreamTimeouts;
pub use engine::{BindKey, Engine, Settings, Shared};
pub use flags::TrafficArgs;
pub use follow::{Follower, Listening};
pub use listen::ListenError;
pub use mesh::{Found, Mesh, OnDemand, Side};
pub use observe::Observer;
pub use pressure::MemoryLevel;
pub use recorder::RecorderSettings;
pub use tls::{SecretError, TlsConfigs, certified_key};
pub use usual::Learnt;
pub use worker::Ending;
