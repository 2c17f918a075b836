//! Flags of a sidecar beyond every process's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use meshwork_base::{Namespace, ObjectName};
use meshwork_messages::{OBSERVE, OPERATE, RECORD, UNDER_WAY, v1};
use meshwork_process::{AdminAddresses, AdminArgs, TraceArgs};
use meshwork_proxy::TrafficArgs;
use meshwork_xds::join::{Joining, Tokens};

/// Flags of the sidecar.
#[derive(clap::Args, Clone, Debug)]
pub struct SidecarArgs {
    /// The service that the application serves
    #[arg(long, value_name = "NAME", env = "MESHWORK_SERVICE", value_parser = name)]
    pub service: ObjectName,

    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", env = "MESHWORK_NAMESPACE", default_value = "default", value_parser = namespace)]
    pub namespace: Namespace,

    /// The workload that the token is for [default: the service's name]
    #[arg(long, value_name = "NAME", env = "MESHWORK_WORKLOAD", value_parser = name)]
    pub workload: Option<ObjectName>,

    /// The port that the application listens on [default: a free one, told to it as PORT and {port}]
    #[arg(long, value_name = "PORT", env = "MESHWORK_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// What the application speaks: http, http2, grpc, tcp [default: as callers do]
    #[arg(long, value_name = "PROTOCOL", env = "MESHWORK_PROTOCOL", value_parser = ["http", "http2", "grpc", "tcp"])]
    pub protocol: Option<String>,

    /// The port of the service that callers name; the same for all instances of it
    #[arg(long, value_name = "PORT", env = "MESHWORK_SERVICE_PORT", default_value_t = 80, value_parser = clap::value_parser!(u16).range(1..))]
    pub service_port: u16,

    /// The application's version, for routing and metrics
    #[arg(long, value_name = "VERSION", env = "MESHWORK_APP_VERSION")]
    pub app_version: Option<String>,

    /// A label of this instance, as tier=main, for `matchLabels` of subsets and priorities; the registry has it as
    /// metadata. May be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", env = "MESHWORK_LABEL", value_delimiter = ',')]
    pub labels: Vec<Label>,

    /// This instance's share of what its service is asked, in relation to the others'; the registry has it
    #[arg(long, value_name = "N", env = "MESHWORK_WEIGHT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub weight: u32,

    /// This instance's own address, at which its sidecar listens and the registry finds it [default: a loopback address that is free]
    #[arg(long, value_name = "IP", env = "MESHWORK_ADDRESS")]
    pub address: Option<IpAddr>,

    /// File with a join token; needed at the first start, or after weeks of absence, and not where the control plane's API is this machine's
    #[arg(long, value_name = "FILE", env = "MESHWORK_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,

    /// Where the control plane takes proxies
    #[arg(long, value_name = "HOST:PORT", env = "MESHWORK_CONTROL_PLANE", default_value = "127.0.0.1:15012")]
    pub control_plane: String,

    /// Where the registry takes instances, by mTLS
    #[arg(long, value_name = "HOST:PORT", env = "MESHWORK_REGISTRY", default_value = "127.0.0.1:8501")]
    pub registry: String,

    /// A door to one service for clients that know of no proxy, as database drivers: NAME:PORT=LOCALPORT, or
    /// NAME:PORT=IP:LOCALPORT; opaque TCP only, and on this machine only. May be given several times
    #[arg(
        long = "upstream",
        value_name = "NAME:PORT=ADDRESS",
        env = "MESHWORK_UPSTREAM",
        value_delimiter = ','
    )]
    pub upstreams: Vec<Door>,

    /// Port of the outbound side
    #[arg(long, value_name = "PORT", env = "MESHWORK_OUTBOUND_PORT", default_value_t = 15001)]
    pub outbound_port: u16,

    /// Port of the inbound side
    #[arg(long, value_name = "PORT", env = "MESHWORK_INBOUND_PORT", default_value_t = 15006)]
    pub inbound_port: u16,

    /// Port of the inbound side for opaque connections (HBONE)
    #[arg(long, value_name = "PORT", env = "MESHWORK_HBONE_PORT", default_value_t = 15008)]
    pub hbone_port: u16,

    /// Where the admin ports are.
    #[command(flatten)]
    pub addresses: AdminArgs,

    /// Whether spans are exported, and where to.
    #[command(flatten)]
    pub traces: TraceArgs,

    /// Bounds on what callers may make it hold
    #[command(flatten)]
    pub traffic: TrafficArgs,

    /// The application: its command and arguments; {port} in them becomes its port
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// What an instance is told apart by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name, as Consul takes it for `Meta`.
    pub key: String,
    /// What it says.
    pub value: String,
}

/// Why a text is no label.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelError {
    /// There is no `=`.
    #[error("`{0}` is not KEY=VALUE, as in tier=main")]
    Form(String),
    /// What nobody could write elsewhere.
    #[error(
        "`{0}` cannot be a label's name: use 1 to 128 letters, digits, `-`, `_`, `.` and `/`, as in tier"
    )]
    Key(String),
    /// Metadata by which the platform itself tells instances apart.
    #[error("`{0}` is set by the sidecar itself; choose another name than meshwork.dev/…")]
    Ours(String),
    /// There is a flag for it.
    #[error("`version` is said by --app-version, and selected by `version` all the same")]
    Version,
    /// Two values.
    #[error("--label: `{0}` has two values; give it once")]
    Twice(String),
}

impl FromStr for Label {
    type Err = LabelError;
    fn from_str(text: &str) -> Result<Self, LabelError> {
        let (key, value) = text.split_once('=').ok_or_else(|| LabelError::Form(text.to_owned()))?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        if key.is_empty() || key.len() > 128 || !key.bytes().all(fits) {
            return Err(LabelError::Key(key.to_owned()));
        }
        if key.starts_with("meshwork.dev/") {
            return Err(LabelError::Ours(key.to_owned()));
        }
        if key == "version" {
            return Err(LabelError::Version);
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

/// A door of the outbound side that leads to one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// The service as callers name it, with its port.
    pub authority: String,
    /// Absent: where the outbound side is.
    pub address: Option<IpAddr>,
    /// The port of the door.
    pub port: NonZeroU16,
}

/// Why a text is no door.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DoorError {
    /// A part is missing.
    #[error("`{0}` is not NAME:PORT=LOCALPORT or NAME:PORT=IP:LOCALPORT, as in database:5432=5432")]
    Form(String),
    /// Anybody could come in by it and would be taken for this workload.
    #[error(
        "`{0}` can be reached from other machines, whose callers would be taken for this workload: use a loopback address"
    )]
    Open(IpAddr),
    /// Two lead in by one address.
    #[error("--upstream: {0} leads to two services; give each a port of its own")]
    Twice(SocketAddr),
}

impl FromStr for Door {
    type Err = DoorError;
    fn from_str(text: &str) -> Result<Self, DoorError> {
        let form = || DoorError::Form(text.to_owned());
        let (authority, at) = text.split_once('=').ok_or_else(form)?;
        let (name, number) = authority.rsplit_once(':').ok_or_else(form)?;
        if name.is_empty() || number.parse::<NonZeroU16>().is_err() {
            return Err(form());
        }
        let (address, port) = match at.parse::<SocketAddr>() {
            Ok(whole) => (Some(whole.ip()), whole.port()),
            Err(_) => (None, at.parse().map_err(|_| form())?),
        };
        if let Some(open) = address.filter(|address| !address.is_loopback()) {
            return Err(DoorError::Open(open));
        }
        Ok(Self { authority: authority.to_owned(), address, port: NonZeroU16::new(port).ok_or_else(form)? })
    }
}

fn name(text: &str) -> Result<ObjectName, String> {
    ObjectName::new(text).map_err(|error| error.to_string())
}

fn namespace(text: &str) -> Result<Namespace, String> {
    Namespace::new(text).map_err(|error| error.to_string())
}

impl SidecarArgs {
    /// Who joins, and where.
    #[must_use]
    pub fn joining(&self, data_dir: &Path, tokens: Tokens) -> Joining {
        Joining {
            control_plane: self.control_plane.clone(),
            data_dir: data_dir.to_owned(),
            tokens,
            expected: Some((self.namespace.clone(), self.workload().clone())),
        }
    }

    /// The workload whose identity this instance has.
    #[must_use]
    pub fn workload(&self) -> &ObjectName {
        self.workload.as_ref().unwrap_or(&self.service)
    }

    /// Where the outbound side's doors to single services are, at this address unless they say otherwise.
    ///
    /// # Errors
    /// Two are at one address.
    pub(crate) fn doors(&self, outbound: IpAddr) -> Result<BTreeMap<SocketAddr, Arc<str>>, DoorError> {
        let mut doors = BTreeMap::new();
        for Door { authority, address, port } in &self.upstreams {
            let at = SocketAddr::new(address.unwrap_or(outbound), port.get());
            if doors.insert(at, authority.as_str().into()).is_some() {
                return Err(DoorError::Twice(at));
            }
        }
        Ok(doors)
    }

    /// The instance's labels.
    ///
    /// # Errors
    /// One has two values.
    pub(crate) fn labels(&self) -> Result<BTreeMap<String, String>, LabelError> {
        let mut labels = BTreeMap::new();
        for Label { key, value } in &self.labels {
            if labels.insert(key.clone(), value.clone()).is_some() {
                return Err(LabelError::Twice(key.clone()));
            }
        }
        Ok(labels)
    }

    pub(crate) fn node(&self, instance: &str, workers: usize) -> v1::Node {
        v1::Node {
            id: format!("{}/{instance}", self.namespace),
            role: "sidecar".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            features: [OBSERVE, RECORD, UNDER_WAY, OPERATE].map(str::to_owned).into(),
            workers: u32::try_from(workers).unwrap_or(u32::MAX),
            pid: std::process::id(),
            address: String::new(),
            service: format!("{}/{}", self.namespace, self.service),
            ..v1::Node::default()
        }
    }
}

/// Where a sidecar listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// Where the application listens: at the instance's loopback address, else on 127.0.0.1, so that nobody from
    /// another machine passes the sidecar by.
    pub(crate) app_host: IpAddr,
    /// Like the application, out of other machines' reach.
    pub(crate) outbound: SocketAddr,
    pub(crate) inbound: SocketAddr,
    pub(crate) hbone: SocketAddr,
    pub(crate) admin: AdminAddresses,
}

impl Places {
    pub(crate) fn new(args: &SidecarArgs, address: IpAddr) -> Self {
        let app_host = if address.is_loopback() { address } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
        Self {
            app_host,
            outbound: SocketAddr::new(app_host, args.outbound_port),
            inbound: SocketAddr::new(address, args.inbound_port),
            hbone: SocketAddr::new(address, args.hbone_port),
            admin: args.addresses.addresses(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_is_a_service_and_a_place_on_this_machine() {
        let door = |text: &str| text.parse::<Door>();
        let short = door("database:5432=15432").unwrap();
        assert_eq!((&*short.authority, short.address, short.port.get()), ("database:5432", None, 15432));
        let long = door("redis.cache:80=127.0.0.1:6379").unwrap();
        assert_eq!((long.address, long.port.get()), (Some(Ipv4Addr::LOCALHOST.into()), 6379));
        assert_eq!(door("a:1=[::1]:2").unwrap().address, Some("::1".parse().unwrap()));
        for text in
            ["database", "database=5432", ":80=1", "a:b=1", "a:0=1", "a:1=0", "a:1=", "a:1=x:2", "a:1=70000"]
        {
            assert_eq!(door(text), Err(DoorError::Form(text.to_owned())));
        }
        assert!(door("a:1=0.0.0.0:2").unwrap_err().to_string().contains("loopback"));
    }

    #[test]
    fn a_label_is_a_key_and_a_value_and_none_of_ours() {
        let label = |text: &str| text.parse::<Label>();
        let tier = label("tier=main=1").unwrap();
        assert_eq!((&*tier.key, &*tier.value), ("tier", "main=1"));
        assert_eq!(label("team/tier=").unwrap().value, "");
        assert_eq!(label("tier"), Err(LabelError::Form("tier".to_owned())));
        assert_eq!(label("=main"), Err(LabelError::Key(String::new())));
        assert_eq!(label("a b=main"), Err(LabelError::Key("a b".to_owned())));
        let ours = "meshwork.dev/mesh-port";
        assert_eq!(label(&format!("{ours}=1")), Err(LabelError::Ours(ours.to_owned())));
        assert_eq!(label("version=v2"), Err(LabelError::Version));
    }
}
