//! The ports of a service: each of its instances says them for itself, and need not say what the others do.
//!
//! Callers go by a port's number. So each number that instances declare is a port of its own, with those instances that have it:
//! a service moves from one number to another by a rolling update. A name is of one port alone, and it is the majority's; what
//! policies say of it holds for the others that are called so too.

use std::collections::{BTreeMap, BTreeSet};

use meshwork_api::registry::{Instance, METRICS_PORT, sidecar};
use meshwork_compile::input::{AppProtocol, CatalogPort};

/// One port, as one instance says it.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    name: &'a str,
    /// The number that callers use, where the instance says one.
    declared: Option<u16>,
    /// The number that the application uses.
    pub(super) app: u16,
    protocol: Option<&'a str>,
}

impl Said<'_> {
    /// The number that callers of this instance use.
    pub(super) fn number(&self) -> u16 {
        self.declared.unwrap_or(self.app)
    }

    pub(super) fn protocol(&self) -> AppProtocol {
        self.protocol.map_or(AppProtocol::Detect, app_protocol)
    }
}

/// An instance's ports, without that of its metrics.
pub(super) fn said(instance: &Instance) -> impl Iterator<Item = Said<'_>> {
    let service_port = instance.metadata.get(sidecar::SERVICE_PORT).and_then(|text| text.parse().ok());
    let ports = instance.ports.iter().filter(|(name, _)| *name != METRICS_PORT);
    // One number names one port; an instance with several is called on each by its own.
    let declared: Option<u16> = service_port.filter(|_| ports.clone().count() == 1);
    ports.map(move |(name, port)| Said { name, declared, app: port.port, protocol: port.protocol.as_deref() })
}

/// The ports of a service.
#[derive(Default)]
pub(super) struct Ports<'a> {
    /// By the number that instances declare.
    declared: BTreeMap<u16, Port<'a>>,
    /// By name, of those who declare none: they have the number of the first who has it.
    others: BTreeMap<&'a str, Port<'a>>,
    /// Who has which name.
    names: BTreeMap<u16, String>,
}

/// Who says what of one port.
#[derive(Default)]
struct Port<'a> {
    number: u16,
    names: Votes<&'a str>,
    protocols: Votes<AppProtocol>,
}

/// How many say what, in the order in which it was first said.
struct Votes<T>(Vec<(T, usize)>);

impl<T> Default for Votes<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> Votes<T> {
    fn add(&mut self, one: T) {
        match self.0.iter_mut().find(|(known, _)| *known == one) {
            Some((_, count)) => *count += 1,
            None => self.0.push((one, 1)),
        }
    }

    fn all(&self) -> usize {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// What most say; of several the first.
    fn most(&self) -> Option<T> {
        let most = self.0.iter().map(|(_, count)| *count).max()?;
        self.0.iter().find(|(_, count)| *count == most).map(|(one, _)| *one)
    }
}

impl<'a> Ports<'a> {
    pub(super) fn of(instances: &[&'a Instance]) -> Self {
        let mut ports = Self::default();
        let all = || instances.iter().flat_map(|instance| said(instance));
        for one in all() {
            if let Some(number) = one.declared {
                ports.declared.entry(number).or_default().add(number, one);
            }
        }
        ports.give_names();
        for one in all().filter(|one| one.declared.is_none()) {
            match ports.declared_as(one.name) {
                Some(port) => port.protocols.add(one.protocol()),
                None => ports.others.entry(one.name).or_default().add(one.app, one),
            }
        }
        ports
    }

    /// The most instances have the first choice; of as many the lowest number.
    fn give_names(&mut self) {
        let mut order: Vec<(u16, &Port<'_>)> =
            self.declared.iter().map(|(number, port)| (*number, port)).collect();
        order.sort_by_key(|(number, port)| (std::cmp::Reverse(port.names.all()), *number));
        let mut given = BTreeSet::new();
        for (number, port) in order {
            let wanted = port.names.most().unwrap_or_default();
            let mut name = wanted.to_owned();
            while !given.insert(name.clone()) {
                name = format!("{name}-{number}");
            }
            self.names.insert(number, name);
        }
    }

    fn declared_as(&mut self, name: &str) -> Option<&mut Port<'a>> {
        let (number, _) = self.names.iter().find(|(_, known)| *known == name)?;
        self.declared.get_mut(number)
    }

    /// The name that the service's port has which an instance means.
    pub(super) fn name(&self, one: &Said<'_>) -> String {
        let known = one.declared.and_then(|number| self.names.get(&number));
        known.map_or_else(|| one.name.to_owned(), Clone::clone)
    }

    pub(super) fn catalog(&self) -> Vec<CatalogPort> {
        let declared = self.declared.values().map(|port| (self.names[&port.number].clone(), port));
        let others = self.others.iter().map(|(name, port)| ((*name).to_owned(), port));
        let mut all: Vec<CatalogPort> = declared
            .chain(others)
            .map(|(name, port)| {
                let said = port.names.most().filter(|said| **said != name).unwrap_or_default().to_owned();
                CatalogPort { name, said, port: port.number, protocol: port.protocol() }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// What its instances do not agree on.
    pub(super) fn doubts(&self, service: &str) -> Vec<String> {
        let mut doubts = Vec::new();
        let mut numbers: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (number, port) in &self.declared {
            for (name, count) in &port.names.0 {
                numbers.entry(name).or_default().push(format!("{number} ({count} of them)"));
            }
        }
        for (name, numbers) in numbers.into_iter().filter(|(_, numbers)| numbers.len() > 1) {
            let numbers = numbers.join(", ");
            doubts.push(format!(
                "instances of {service} give their port {name} different numbers: {numbers}; each is a port of the service \
                 with those instances alone: give all the same --service-port unless the service is moving"
            ));
        }
        for port in self.declared.values().chain(self.others.values()).filter(|port| port.is_divided()) {
            let (number, taken) = (port.number, word(port.protocol()));
            let said = port.protocols.0.iter();
            let said: Vec<String> =
                said.map(|(protocol, count)| format!("{} ({count} of them)", word(*protocol))).collect();
            doubts.push(format!(
                "instances of {service} speak different protocols at port {number}: {}; callers take it for {taken}: give \
                 all the same --protocol",
                said.join(", ")
            ));
        }
        doubts
    }
}

impl<'a> Port<'a> {
    fn add(&mut self, number: u16, one: Said<'a>) {
        if self.number == 0 {
            self.number = number;
        }
        self.names.add(one.name);
        self.protocols.add(one.protocol());
    }

    /// What most say who say one. Of as many TCP comes last: it is what unknown words mean, and nothing can be routed then.
    fn protocol(&self) -> AppProtocol {
        let said = self.protocols.0.iter().filter(|(protocol, _)| *protocol != AppProtocol::Detect);
        let mut said: Vec<_> = said.copied().collect();
        said.sort_by_key(|(protocol, _)| *protocol == AppProtocol::Tcp);
        Votes(said).most().unwrap_or_default()
    }

    fn is_divided(&self) -> bool {
        self.protocols.0.iter().filter(|(protocol, _)| *protocol != AppProtocol::Detect).count() > 1
    }
}

/// As Consul's users and Kubernetes' write it; a word that is not known is carried as TCP.
fn app_protocol(text: &str) -> AppProtocol {
    match text.to_ascii_lowercase().as_str() {
        "" => AppProtocol::Detect,
        "http" | "http1" | "http/1.1" => AppProtocol::Http1,
        "http2" | "h2c" | "h2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tls" | "https" => AppProtocol::Tls,
        "ws" | "websocket" => AppProtocol::WebSocket,
        _ => AppProtocol::Tcp,
    }
}

const fn word(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Detect => "none",
        AppProtocol::Http1 => "http",
        AppProtocol::Http2 => "http2",
        AppProtocol::Grpc => "grpc",
        AppProtocol::Tcp => "tcp",
        AppProtocol::Tls => "tls",
        AppProtocol::WebSocket => "websocket",
    }
}
