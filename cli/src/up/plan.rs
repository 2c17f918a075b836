//! Which processes make up the platform.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{UpError, resources};

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) data_dir: &'a Path,
    pub(crate) base: IpAddr,
    pub(crate) resources: &'a Path,
    pub(crate) with_shop: bool,
    pub(crate) workers: Option<usize>,
    /// Certificate and key of the mesh's root, where it is one's own.
    pub(crate) root: Option<(&'a Path, &'a Path)>,
}

/// Everything that is started.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Where the state of all lies; absolute.
    pub(crate) data_dir: PathBuf,
    /// Where server and gateway listen.
    pub(crate) base: IpAddr,
    pub(crate) server: Task,
    pub(crate) gateway: Task,
    pub(crate) instances: Vec<InstanceTask>,
    /// What is left out, and why.
    pub(crate) notes: Vec<String>,
}

/// One process.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// Where `/healthz/ready` is asked for.
    pub(crate) ready: SocketAddr,
}

/// An instance of a service.
#[derive(Clone, Debug)]
pub(crate) struct InstanceTask {
    pub(crate) task: Task,
    pub(crate) service: &'static str,
    pub(crate) name: String,
    pub(crate) address: IpAddr,
}

/// The shop: service, how often, what it speaks.
const SHOP: [(&str, u8, &str); 4] =
    [("catalog", 2, "http"), ("inventory", 2, "grpc"), ("reviews", 1, "http"), ("storefront", 1, "http")];

impl Plan {
    /// Works out what is to be started, and looks whether it can be.
    ///
    /// # Errors
    /// [`UpError`].
    pub(crate) fn new(wanted: &Wanted<'_>) -> Result<Self, UpError> {
        let data_dir = std::path::absolute(wanted.data_dir).map_err(UpError::io(wanted.data_dir))?;
        let wanted = &Wanted { data_dir: &data_dir, ..wanted.clone() };
        let mut notes = Vec::new();
        let mut instances = Vec::new();
        for (service, count, protocol) in SHOP.into_iter().filter(|_| wanted.with_shop) {
            let Some(command) = command(service, wanted.data_dir)? else {
                notes.push(NO_PYTHON.to_owned());
                continue;
            };
            for number in 1..=count {
                let address = instance_address(wanted.base, instances.len());
                instances.push(instance(wanted, service, number, protocol, address, command.clone()));
            }
        }
        Ok(Self {
            server: server(wanted)?,
            gateway: gateway(wanted),
            base: wanted.base,
            instances,
            notes,
            data_dir: data_dir.clone(),
        })
    }

    /// All processes, in the order in which they are started.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = &Task> {
        let instances = self.instances.iter().map(|instance| &instance.task);
        [&self.server, &self.gateway].into_iter().chain(instances)
    }
}

/// What is said where [`has_python`] does not hold.
pub(crate) const NO_PYTHON: &str = "python3 is not installed: the shop runs without reviews";

/// Beside 127.0.0.1 the instances are at 127.64.0.1, 127.64.0.2, …; beside another base at the addresses that follow.
pub(crate) fn instance_address(base: IpAddr, index: usize) -> IpAddr {
    let step = u32::try_from(index).unwrap_or(0) + 1;
    match base {
        IpAddr::V4(Ipv4Addr::LOCALHOST) | IpAddr::V6(_) => {
            Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 64, 0, 0)) + step).into()
        }
        IpAddr::V4(base) => Ipv4Addr::from(u32::from(base).wrapping_add(step)).into(),
    }
}

pub(crate) fn words(arguments: &[&str]) -> Vec<OsString> {
    arguments.iter().map(OsString::from).collect()
}

/// What every process is told.
fn common(wanted: &Wanted<'_>) -> Vec<OsString> {
    let mut arguments = words(&["--data-dir"]);
    arguments.push(wanted.data_dir.into());
    if let Some(workers) = wanted.workers {
        arguments.extend(words(&["--workers", &workers.to_string()]));
    }
    arguments
}

fn server(wanted: &Wanted<'_>) -> Result<Task, UpError> {
    let mut arguments = words(&["server", "--resources"]);
    arguments.push(wanted.resources.into());
    arguments.extend(words(&["--listen-address", &wanted.base.to_string()]));
    if let Some((certificate, key)) = wanted.root {
        for (flag, file) in [("--ca-cert", certificate), ("--ca-key", key)] {
            arguments.push(flag.into());
            arguments.push(std::path::absolute(file).map_err(UpError::io(file))?.into());
        }
    }
    arguments.extend(common(wanted));
    let ready = SocketAddr::new(wanted.base, 15014);
    Ok(Task { name: "server".to_owned(), arguments, environment: Vec::new(), ready })
}

fn gateway(wanted: &Wanted<'_>) -> Task {
    let control_plane = SocketAddr::new(wanted.base, 15012).to_string();
    let server = format!("http://{}", SocketAddr::new(wanted.base, 15014));
    let mut arguments = words(&["gateway", "--control-plane", &control_plane, "--server", &server]);
    arguments.push("--access-log".into());
    arguments.push(wanted.data_dir.join("gateway/access.log").into());
    arguments.extend(words(&["--listen-address", &wanted.base.to_string()]));
    arguments.extend(common(wanted));
    let ready = SocketAddr::new(wanted.base, 15021);
    Task { name: "gateway".to_owned(), arguments, environment: Vec::new(), ready }
}

/// A program beside a sidecar.
pub(crate) struct Beside<'a> {
    pub(crate) service: &'a str,
    /// The instance's name.
    pub(crate) name: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) address: IpAddr,
    /// What else `run` is told.
    pub(crate) flags: Vec<OsString>,
    pub(crate) command: Vec<OsString>,
}

/// `meshwork run` in the platform that is asked for, whose folder is absolute.
pub(crate) fn beside(wanted: &Wanted<'_>, one: Beside<'_>) -> Task {
    let Beside { service, name, protocol, address, flags, command } = one;
    let at = |port| SocketAddr::new(wanted.base, port).to_string();
    let mut arguments = words(&["run", "--service", service, "--instance", name, "--protocol", protocol]);
    arguments.extend(words(&["--address", &address.to_string(), "--control-plane", &at(15012)]));
    arguments.extend(words(&["--registry", &at(8501), "--server", &format!("http://{}", at(15014))]));
    arguments.push("--access-log".into());
    arguments.push(wanted.data_dir.join(name).join("access.log").into());
    arguments.extend(common(wanted));
    arguments.extend(flags);
    arguments.push("--".into());
    arguments.extend(command);
    let ready = SocketAddr::new(address, 15021);
    Task { name: name.to_owned(), arguments, environment: Vec::new(), ready }
}

fn instance(
    wanted: &Wanted<'_>,
    service: &'static str,
    number: u8,
    protocol: &str,
    address: IpAddr,
    command: Vec<OsString>,
) -> InstanceTask {
    let name = format!("{service}-{number}");
    let one = Beside { service, name: &name, protocol, address, flags: Vec::new(), command };
    let mut task = beside(wanted, one);
    task.environment.push(("DATA_DIR", wanted.data_dir.join(&name).join("data").into()));
    InstanceTask { task, service, name, address }
}

/// How a service of the shop is started; none where the machine lacks what it needs.
fn command(service: &str, data_dir: &Path) -> Result<Option<Vec<OsString>>, UpError> {
    if service == "reviews" {
        if !has_python() {
            return Ok(None);
        }
        return Ok(Some(vec!["python3".into(), resources::reviews_script(data_dir)?.into()]));
    }
    let own = std::env::current_exe().map_err(UpError::io(Path::new("/proc/self/exe")))?;
    let folder = own.parent().unwrap_or(Path::new("/")).to_owned();
    let program = format!("commerce-{service}");
    let path = folder.join(&program);
    if path.is_file() { Ok(Some(vec![path.into()])) } else { Err(UpError::NoShop { program, folder }) }
}

/// Whether the one service of the shop that is no program of ours can run.
pub(crate) fn has_python() -> bool {
    let mut python = Command::new("python3");
    let found =
        python.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_have_addresses_of_their_own() {
        let at = |base: &str, index| instance_address(base.parse().unwrap(), index).to_string();
        assert_eq!([at("127.0.0.1", 0), at("127.0.0.1", 5)], ["127.64.0.1", "127.64.0.6"]);
        assert_eq!([at("127.20.3.254", 0), at("127.20.3.254", 1)], ["127.20.3.255", "127.20.4.0"]);
    }
}
