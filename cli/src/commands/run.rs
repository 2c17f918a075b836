//! `meshwork run`: a program in the mesh, with a sidecar beside it.

use std::fs::{File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use meshwork_base::{Clock, InstanceId, NameError, SystemClock};
use meshwork_process::CommonArgs;
use meshwork_sidecar::{Parts, SidecarArgs};
use meshwork_telemetry::{MetricsRegistry, init_logging};
use rustix::fs::{FlockOperation, flock};

use super::Outcome;
use crate::private;
use crate::server::ApiArgs;
use crate::token::tokens;

/// Run a program in the mesh: registered, reached and calling by mTLS, with metrics
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The name of this instance [default: the service's name, this machine's where the control plane is another's, and the first number that is free]
    #[arg(long, value_name = "NAME", env = "MESHWORK_INSTANCE")]
    instance: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    sidecar: SidecarArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Of a machine's name so many letters say which it is: container runtimes give twelve.
const LONGEST_HOST: usize = 32;

/// Why an instance cannot have its folder or its address.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("instance {instance} runs already, with the folder {}; stop it, or give this one another --instance", folder.display())]
    Running { instance: String, folder: PathBuf },
    #[error("{} cannot be locked: {error}", path.display())]
    Lock { path: PathBuf, error: std::io::Error },
    #[error("no loopback address of 127.65.0.0/16 is free for this instance; give it one with --address")]
    NoAddress,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Private(#[from] private::PrivateError),
}

pub(crate) fn run(arguments: Arguments) -> Outcome {
    let Arguments { instance, api, sidecar: args, mut common } = arguments;
    let metrics = MetricsRegistry::new(common.max_metric_series);
    let log = init_logging(common.log_format, &common.log, &metrics)?;
    args.traffic.warn_of_few_descriptors(common.worker_count());
    let (instance, _lock) = claim(&common.data_dir, &args, instance)?;
    let platform = std::mem::take(&mut common.data_dir);
    common.data_dir = folder(&platform, &args, &instance);
    let (address, _claim) = match args.address {
        Some(address) => (address, None),
        None => free_address(&platform, &args)?,
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // On this thread, which lives as long as the process: the application dies with the thread that started it.
    let code = runtime.block_on(async {
        let who = (args.namespace.as_str(), args.workload().as_str());
        let tokens = tokens(&api, &platform, args.token_file.clone(), who);
        let parts = Parts { common, args, tokens, instance, address, log: Some(log), clock, metrics };
        Ok::<_, Box<dyn std::error::Error>>(Box::pin(meshwork_sidecar::run(parts)).await?)
    })?;
    Ok(ExitCode::from(code))
}

fn folder(data_dir: &Path, args: &SidecarArgs, instance: &str) -> PathBuf {
    // Instances of other namespaces may have the same name; a dot stands in no namespace.
    match args.namespace.as_str() {
        "default" => data_dir.join(instance),
        namespace => data_dir.join(format!("{namespace}.{instance}")),
    }
}

/// The instance's name, with its folder locked for as long as the file lives.
fn claim(data_dir: &Path, args: &SidecarArgs, asked: Option<String>) -> Result<(String, File), RunError> {
    if let Some(instance) = asked {
        InstanceId::new(&instance)?;
        let folder = folder(data_dir, args, &instance);
        return match lock(&folder)? {
            Some(file) => Ok((instance, file)),
            None => Err(RunError::Running { instance, folder }),
        };
    }
    let name = default_name(args, rustix::system::uname().nodename().to_bytes());
    for number in 1u32.. {
        let instance = format!("{name}-{number}");
        if let Some(file) = lock(&folder(data_dir, args, &instance))? {
            return Ok((instance, file));
        }
    }
    unreachable!("a machine has fewer processes than there are numbers")
}

/// What instances are called but for their number. The number is free among those of this folder; where the mesh reaches beyond
/// this machine the machine's name tells them from those of others.
fn default_name(args: &SidecarArgs, host: &[u8]) -> String {
    let control_plane = args.control_plane.rsplit_once(':').map_or("", |(host, _)| host);
    let control_plane = control_plane.trim_matches(['[', ']']);
    let here =
        control_plane == "localhost" || control_plane.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let first = host.split(|byte| *byte == b'.').next().unwrap_or_default();
    let host: String = first
        .iter()
        .filter(|byte| byte.is_ascii_alphanumeric() || **byte == b'-')
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .take(LONGEST_HOST)
        .collect();
    let host = host.trim_matches('-');
    if here || host.is_empty() { args.service.to_string() } else { format!("{}-{host}", args.service) }
}

fn lock(folder: &Path) -> Result<Option<File>, RunError> {
    private::folder(folder)?;
    let path = folder.join("lock");
    let failed = |error: std::io::Error| RunError::Lock { path: path.clone(), error };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}

/// A loopback address on which no sidecar listens yet, nor is about to while the file lives.
fn free_address(data_dir: &Path, args: &SidecarArgs) -> Result<(IpAddr, Option<File>), RunError> {
    let ports = [args.inbound_port, args.outbound_port, args.hbone_port, 15000, 15020, 15021];
    for last in 1..=250 {
        let address = IpAddr::V4(Ipv4Addr::new(127, 65, 0, last));
        let claimed = lock(&data_dir.join("addresses").join(address.to_string()))?;
        if claimed.is_some() && ports.iter().all(|port| TcpListener::bind((address, *port)).is_ok()) {
            return Ok((address, claimed));
        }
    }
    Err(RunError::NoAddress)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> SidecarArgs {
        #[derive(clap::Parser)]
        struct Parser {
            #[command(flatten)]
            args: SidecarArgs,
        }
        <Parser as clap::Parser>::parse_from(words).args
    }

    #[test]
    fn an_instance_is_claimed_once_and_numbers_are_used_again() {
        let data = tempfile::tempdir().unwrap();
        let args = parsed(&["run", "--service", "web", "--", "true"]);
        let (first, lock) = claim(data.path(), &args, None).unwrap();
        let (second, _second) = claim(data.path(), &args, None).unwrap();
        assert_eq!((first.as_str(), second.as_str()), ("web-1", "web-2"));
        let taken = claim(data.path(), &args, Some("web-1".to_owned()));
        assert!(matches!(taken, Err(RunError::Running { .. })), "{taken:?}");
        drop(lock);
        assert_eq!(claim(data.path(), &args, None).unwrap().0, "web-1");
        assert!(claim(data.path(), &args, Some("../x".to_owned())).is_err());
    }

    #[test]
    fn where_the_mesh_reaches_beyond_the_machine_its_name_is_part_of_the_instance_s() {
        let named = |control_plane: &str, host: &[u8]| {
            let words = ["run", "--service", "web", "--control-plane", control_plane, "--", "true"];
            default_name(&parsed(&words), host)
        };
        for here in ["127.0.0.1:15012", "127.9.8.7:15012", "[::1]:15012", "localhost:15012"] {
            assert_eq!(named(here, b"web03"), "web");
        }
        assert_eq!(named("10.0.0.1:15012", b"Web_03.example"), "web-web03");
        assert_eq!(named("mesh.example:15012", b"4f66ad9a0b2e"), "web-4f66ad9a0b2e");
        assert_eq!(named("mesh.example:15012", "-\u{e4}".as_bytes()), "web");
    }
}
