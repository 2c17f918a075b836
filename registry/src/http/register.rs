//! Reading Consul's definitions of services, checks and nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::Uri;
use meshwork_api::registry::{Port, sidecar};
use meshwork_process::Caller;
use serde_json::Value;

use crate::doc::{CONSUL_PORT, Check, HttpProbe, Instance, Node, Probe, Status, TaggedAddress, Target};
use crate::error::RegistryError;
use crate::fields::Fields;

/// What is said to a check that this registry cannot carry out.
const PROBES: &str = "TTL, HTTP, TCP and GRPC";
/// Consul's default for a check's timeout.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest interval: less is load, not knowledge.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// The shortest time after which an instance is removed for being critical, as Consul has it.
const MIN_DEREGISTER: Duration = Duration::from_secs(60);

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A service definition: its id, the instance, its checks as they were given.
pub(super) struct Definition {
    pub(super) id: String,
    pub(super) instance: Instance,
    pub(super) checks: Vec<Value>,
}

/// Reads a service definition; `name_field` is `Name` for the agent, `Service` for the catalog.
pub(super) fn service(mut fields: Fields, name_field: &str) -> Result<Definition, RegistryError> {
    let name = fields.text(name_field)?;
    let name =
        name.ok_or_else(|| RegistryError::invalid(format!("Missing service name: give {name_field:?}")))?;
    let id = fields.text("ID")?.unwrap_or_else(|| name.clone());
    let mut ports = BTreeMap::new();
    if let Some(port) = fields.number::<u16>("Port")?.filter(|port| *port != 0) {
        ports.insert(CONSUL_PORT.to_owned(), Port { port, protocol: None });
    }
    let (weight, weight_warning) = weights(&mut fields)?;
    let mut checks = fields.list("Checks")?;
    checks.extend(fields.value("Check").filter(|check| check != &serde_json::json!({})));
    fields.only("Kind", &[])?;
    fields.only("Namespace", &["default"])?;
    fields.only("Partition", &["default"])?;
    let mut metadata = fields.text_map("Meta")?;
    let (region, zone) = locality(&mut fields)?;
    // Where sidecars say it; what was written there by hand is as good.
    if let Some(region) = region {
        metadata.entry(sidecar::REGION.to_owned()).or_insert(region);
    }
    let instance = Instance {
        service: name,
        address: fields.text("Address")?.unwrap_or_default(),
        ports,
        tagged_addresses: tagged_addresses(&mut fields)?,
        zone,
        weight,
        weight_warning,
        tags: fields.texts("Tags")?,
        metadata,
        enable_tag_override: fields.flag("EnableTagOverride")?,
        ..Instance::default()
    };
    // The registry's own answers, sent back by a client that read them.
    for echoed in ["CreateIndex", "ModifyIndex", "Datacenter"] {
        fields.value(echoed);
    }
    fields.finish()?;
    Ok(Definition { id, instance, checks })
}

fn weights(fields: &mut Fields) -> Result<(u32, u32), RegistryError> {
    let Some(value) = fields.value("Weights") else { return Ok((1, 1)) };
    let mut weights = Fields::of("Weights", value)?;
    let passing = weights.number("Passing")?.unwrap_or(1);
    let warning = weights.number("Warning")?.unwrap_or(1);
    weights.finish()?;
    if passing == 0 {
        return Err(RegistryError::invalid(
            "Weights: Passing must be greater than 0; use maintenance to take it out",
        ));
    }
    Ok((passing, warning))
}

fn tagged_addresses(fields: &mut Fields) -> Result<BTreeMap<String, TaggedAddress>, RegistryError> {
    let mut all = BTreeMap::new();
    for (name, value) in fields.map("TaggedAddresses")? {
        let mut fields = Fields::of("TaggedAddresses", value)?;
        let address = fields.text("Address")?.unwrap_or_default();
        let port = fields.number("Port")?.unwrap_or(0);
        fields.finish()?;
        all.insert(name, TaggedAddress { address, port });
    }
    Ok(all)
}

/// Region and zone.
fn locality(fields: &mut Fields) -> Result<(Option<String>, Option<String>), RegistryError> {
    let Some(value) = fields.value("Locality") else { return Ok((None, None)) };
    let mut locality = Fields::of("Locality", value)?;
    let (region, zone) = (locality.text("Region")?, locality.text("Zone")?);
    locality.finish()?;
    Ok((region, zone))
}

/// Reads a check definition of the agent API; returns its id, if it has one, and the check.
pub(super) fn check(mut fields: Fields, caller: &Caller) -> Result<(Option<String>, Check), RegistryError> {
    let id = match fields.text("CheckID")? {
        Some(id) => Some(id),
        None => fields.text("ID")?,
    };
    let name = fields.text("Name")?.unwrap_or_default();
    let status = match fields.text("Status")? {
        None => Status::Critical,
        Some(text) => status(&text)?,
    };
    let probe = probe(&mut fields)?;
    let deregister_after = fields.duration("DeregisterCriticalServiceAfter")?;
    let critical = fields.number("FailuresBeforeCritical")?.unwrap_or(0);
    let check = Check {
        name,
        notes: fields.text("Notes")?.unwrap_or_default(),
        instance: fields.text("ServiceID")?,
        probe,
        deregister_after: deregister_after.map(|after| millis(after.max(MIN_DEREGISTER))),
        success_before_passing: fields.number("SuccessBeforePassing")?.unwrap_or(0),
        failures_before_warning: fields.number("FailuresBeforeWarning")?.unwrap_or(critical),
        failures_before_critical: critical,
        status,
        output: fields.text("Output")?.unwrap_or_default(),
        owner: caller.text(),
    };
    fields.only("Namespace", &["default"])?;
    fields.only("Partition", &["default"])?;
    fields.finish()?;
    Ok((id, check))
}

/// Reads a status.
pub(super) fn status(text: &str) -> Result<Status, RegistryError> {
    let wrong =
        || RegistryError::invalid(format!("Status must be passing, warning or critical, not {text:?}"));
    Status::parse(text).ok_or_else(wrong)
}

fn probe(fields: &mut Fields) -> Result<Probe, RegistryError> {
    for other in
        ["Args", "Script", "DockerContainerID", "UDP", "OSService", "H2PING", "AliasNode", "AliasService"]
    {
        if fields.value(other).is_some_and(|value| !matches!(&value, Value::String(text) if text.is_empty()))
        {
            let why = format!("checks by {other} are not supported; this registry has {PROBES}");
            return Err(RegistryError::invalid(why));
        }
    }
    for tls in ["GRPCUseTLS", "TLSSkipVerify"] {
        if fields.flag(tls)? {
            return Err(RegistryError::invalid(format!(
                "{tls} is not supported: checks are asked in plaintext"
            )));
        }
    }
    let ttl = fields.duration("TTL")?.map(|ttl| Probe::Ttl(millis(ttl)));
    let interval = fields.duration("Interval")?;
    let timeout = fields.duration("Timeout")?.unwrap_or(TIMEOUT);
    let mut probes: Vec<Probe> = ttl.into_iter().collect();
    let asked = |interval: Option<Duration>| {
        let interval = interval.filter(|interval| *interval >= MIN_INTERVAL);
        interval
            .map(millis)
            .ok_or_else(|| RegistryError::invalid("Interval must be given and at least 100ms"))
    };
    if let Some(url) = fields.text("HTTP")? {
        probes.push(Probe::Http(http(fields, url, asked(interval)?, millis(timeout))?));
    }
    let mut target = |name: &str| -> Result<Option<Target>, RegistryError> {
        let Some(address) = fields.text(name)? else { return Ok(None) };
        Ok(Some(Target { address, interval: asked(interval)?, timeout: millis(timeout) }))
    };
    probes.extend(target("TCP")?.map(Probe::Tcp));
    probes.extend(target("GRPC")?.map(Probe::Grpc));
    match (probes.pop(), probes.is_empty()) {
        (Some(probe), true) => Ok(probe),
        (None, _) => Err(RegistryError::invalid(format!("a check needs one of {PROBES}"))),
        (Some(_), false) => Err(RegistryError::invalid(format!("a check must have only one of {PROBES}"))),
    }
}

fn http(fields: &mut Fields, url: String, interval: u64, timeout: u64) -> Result<HttpProbe, RegistryError> {
    let parsed: Option<Uri> = url.parse().ok();
    if parsed.is_none_or(|uri| uri.scheme_str() != Some("http") || uri.authority().is_none()) {
        let why = format!(
            "HTTP must be a URL http://HOST[:PORT]/PATH, not {url:?}; https is not supported in checks"
        );
        return Err(RegistryError::invalid(why));
    }
    let mut header = BTreeMap::new();
    for (name, value) in fields.map("Header")? {
        let values = match value {
            Value::String(value) => vec![value],
            Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            other => {
                return Err(RegistryError::invalid(format!("Header {name:?} must be texts, not {other}")));
            }
        };
        header.insert(name, values);
    }
    let method = fields.text("Method")?.unwrap_or_else(|| "GET".to_owned());
    Ok(HttpProbe { url, method, header, body: fields.text("Body")?.unwrap_or_default(), interval, timeout })
}

/// Reads a check of the catalog API, whose status someone else reports.
pub(super) fn reported_check(mut fields: Fields, caller: &Caller) -> Result<(String, Check), RegistryError> {
    let name = fields.text("Name")?.unwrap_or_default();
    let id = fields.text("CheckID")?.unwrap_or_else(|| name.clone());
    let given = fields.text("Status")?.unwrap_or_else(|| "critical".to_owned());
    let check = Check {
        name,
        notes: fields.text("Notes")?.unwrap_or_default(),
        instance: fields.text("ServiceID")?,
        probe: Probe::External,
        deregister_after: None,
        success_before_passing: 0,
        failures_before_warning: 0,
        failures_before_critical: 0,
        status: status(&given)?,
        output: fields.text("Output")?.unwrap_or_default(),
        owner: caller.text(),
    };
    // Known from the request's own node and from the service.
    for known in ["Node", "ServiceName", "ServiceTags", "CreateIndex", "ModifyIndex", "Type"] {
        fields.value(known);
    }
    fields.finish()?;
    Ok((id, check))
}

/// Reads the node's part of a catalog registration.
pub(super) fn node(fields: &mut Fields) -> Result<(String, Node), RegistryError> {
    let missing = |what: &str| RegistryError::invalid(format!("Must provide {what}"));
    let name = fields.text("Node")?.ok_or_else(|| missing("Node"))?;
    let address = fields.text("Address")?.ok_or_else(|| missing("Address"))?;
    let node = Node {
        id: fields.text("ID")?.unwrap_or_default(),
        address,
        tagged_addresses: fields.text_map("TaggedAddresses")?,
        meta: fields.text_map("NodeMeta")?,
        ..Node::default()
    };
    Ok((name, node))
}
