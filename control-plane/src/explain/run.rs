//! A request's way, phase by phase, in the order in which the proxy goes it.

use std::sync::Arc;

use meshwork_base::{Rng, SeededRng, SpiffeId, Tick};
use meshwork_decision::{
    Binding, Cause, Cluster, Endpoint, Exclusion, Filter, HeaderEdit, HeaderEdits, Health, Inbound,
    InboundPort, Listener, Matched, Mirror, Mtls, NoReasons, OwnedRequest, Protocol, Routed, Scheme,
    Snapshot, SnapshotBuilder, Wanted, normal_path,
};
use meshwork_http1::ParseError;
use meshwork_process::Problem;

use super::answer::{self, Answer, Part, Place, Rule, Seen, Story, Verdict};
use super::ask::{Ask, bad};
use super::{head, policy};

/// Goes the way of a request. `gateway` tells who serves a listener, where that has an identity.
///
/// # Errors
/// The question is none, or it is not clear at which port of several it is aimed.
pub(super) fn explain(
    builder: &SnapshotBuilder,
    snapshot: &Snapshot,
    ask: &Ask,
    gateway: impl Fn(&str) -> Option<SpiffeId>,
) -> Result<Answer, Problem> {
    let request = ask.request(snapshot)?;
    let mut run = Run {
        builder,
        snapshot,
        story: Story::default(),
        answer: Answer {
            revision: snapshot.revision(),
            side: if ask.from.is_some() { "mesh" } else { "gateway" },
            request: Seen::of(&request),
            verdict: Verdict::default(),
            listener: None,
            service: None,
            route: None,
            forwarded: None,
            authorization: Vec::new(),
            backends: Vec::new(),
            steps: Vec::new(),
            omitted: 0,
        },
    };
    let refusal = head::refusal(ask)?;
    run.answer.verdict = match ask.from {
        Some(_) => run.mesh(request, refusal),
        None => run.edge(request, refusal, ask, gateway)?,
    };
    let Run { mut answer, story, .. } = run;
    answer.steps = story.steps;
    answer.omitted = story.omitted;
    Ok(answer)
}

struct Run<'a> {
    builder: &'a SnapshotBuilder,
    snapshot: &'a Snapshot,
    story: Story,
    answer: Answer,
}

/// Where the rule was found, and who calls its backends.
struct Way<'a> {
    /// The service's own cluster, on the outbound side.
    parent: Option<&'a Cluster>,
    caller: Option<SpiffeId>,
}

impl<'a> Run<'a> {
    /// From outside, through a gateway.
    fn edge(
        &mut self,
        mut request: OwnedRequest,
        refusal: Option<ParseError>,
        ask: &Ask,
        gateway: impl Fn(&str) -> Option<SpiffeId>,
    ) -> Result<Verdict, Problem> {
        let Some(binding) = self.binding(&request, ask)? else {
            self.story.tell("listener", "gateways", "refused", "no listener is bound to such a port");
            let streams = self.snapshot.bindings().iter().filter(|binding| {
                matches!(binding.protocol, Protocol::Tls | Protocol::Tcp)
                    && ask.port.is_none_or(|port| binding.port == port)
            });
            for listener in streams.flat_map(|binding| &binding.listeners) {
                let why = "it carries connections, and looks into no request";
                self.story.tell("listener", listener.to_string(), "skipped", why);
            }
            for (listener, why) in self.snapshot.unbound() {
                self.story.tell("listener", listener.to_string(), "skipped", why.as_str());
            }
            return Ok(Verdict::of("notListening"));
        };
        let https = binding.protocol == Protocol::Https;
        request.scheme = if https { Scheme::Https } else { Scheme::Http };
        self.answer.request = Seen::of(&request);
        let literal = request.host.starts_with('[') || request.host.parse::<std::net::IpAddr>().is_ok();
        let host = (!literal).then(|| request.host.clone());
        let sni = ask.sni.clone().or(host).filter(|_| https);
        if https && !self.handshake(binding, sni.as_deref()) {
            return Ok(Verdict::of("handshakeRefused"));
        }
        if let Some(verdict) = self.head(&mut request, refusal) {
            return Ok(verdict);
        }
        Ok(match binding.route(&request, sni.as_deref(), &mut self.story) {
            Routed::Matched(matched) => {
                let caller = matched.listener.and_then(|listener| gateway(&listener.name));
                self.matched(&matched, request, &Way { parent: None, caller })
            }
            Routed::NotFound { cause, listener } => {
                self.answer.listener = listener.map(of_listener);
                Verdict::failed(cause)
            }
        })
    }

    fn handshake(&mut self, binding: &Binding, sni: Option<&str>) -> bool {
        let name = sni.unwrap_or("no name");
        match binding.certificates_for(sni) {
            Some(listener) if listener.secrets.is_empty() => {
                self.story.tell("tls", listener.to_string(), "refused", "it has no certificate to offer");
                false
            }
            Some(listener) => {
                let secrets: Vec<&str> = listener.secrets.iter().map(|secret| &*secret.name).collect();
                let why = format!("SNI {name}; certificate of {}", secrets.join(", "));
                self.story.tell("tls", listener.to_string(), "chosen", why);
                true
            }
            None => {
                let why = format!("no listener takes SNI {name}: the handshake ends with unrecognized_name");
                self.story.tell("tls", format!("port {}", binding.port), "refused", why);
                false
            }
        }
    }

    /// The port that the request comes in by; none when nothing listens there.
    fn binding(&self, request: &OwnedRequest, ask: &Ask) -> Result<Option<&'a Binding>, Problem> {
        let bindings: Vec<&'a Binding> = self.snapshot.bindings().iter().map(|binding| &**binding).collect();
        let named = |binding: &&&'a Binding| {
            ask.listener.as_ref().is_none_or(|name| binding.listeners.iter().any(|l| *l.name == **name))
        };
        if let Some(name) = &ask.listener
            && !bindings.iter().any(|binding| named(&binding))
            && !self.snapshot.unbound().iter().any(|(listener, _)| *listener.name == **name)
        {
            let known: Vec<&str> =
                bindings.iter().flat_map(|binding| &binding.listeners).map(|l| &*l.name).collect();
            return Err(bad(
                "listener",
                &format!("NAMESPACE/GATEWAY/LISTENER, one of: {}", known.join(", ")),
            ));
        }
        let tls = ask.https || ask.sni.is_some();
        let free = ask.listener.is_some() || ask.port.is_some();
        let fits = |binding: &&&'a Binding| {
            let protocol = match binding.protocol {
                Protocol::Https => tls || free,
                Protocol::Http => !tls,
                Protocol::Tls | Protocol::Tcp => false,
            };
            protocol && ask.port.is_none_or(|port| binding.port == port) && named(binding)
        };
        let mut found: Vec<&'a Binding> = Vec::new();
        for binding in bindings.iter().filter(fits).copied() {
            // A Gateway of several addresses has a socket at each: what comes in by them is decided alike.
            if !found.iter().any(|known| is_alike(known, binding)) {
                found.push(binding);
            }
        }
        if let [] | [_] = *found {
            return Ok(found.first().copied());
        }
        let takes = |binding: &&'a Binding| {
            let sni = (binding.protocol == Protocol::Https).then_some(request.host.as_str());
            let routed = binding.route(request, sni, &mut NoReasons);
            !matches!(routed, Routed::NotFound { cause: Cause::NoListener, .. })
        };
        let taking: Vec<&'a Binding> = found.iter().copied().filter(takes).collect();
        match *taking {
            [] => Ok(found.first().copied()),
            [only] => Ok(Some(only)),
            _ => {
                let mut names: Vec<&str> =
                    taking.iter().flat_map(|binding| &binding.listeners).map(|l| &*l.name).collect();
                names.sort_unstable();
                names.dedup();
                let right = format!("given, since several ports take this host: {}", names.join(", "));
                Err(bad("listener", &right))
            }
        }
    }

    /// From within the mesh, as a sidecar's outbound side does.
    fn mesh(&mut self, mut request: OwnedRequest, refusal: Option<ParseError>) -> Verdict {
        let caller = request.peer.clone().expect("who asks from the mesh has an identity");
        if let Some(verdict) = self.foreign(&caller).or_else(|| self.head(&mut request, refusal)) {
            return verdict;
        }
        let Some(service) = self.builder.outbound_from(caller.namespace(), &request.host) else {
            let why = format!("no service is known by this host in namespace {}", caller.namespace());
            self.story.tell("service", request.host, "refused", why);
            return Verdict::failed(Cause::UnknownService);
        };
        self.answer.service = Some(Place::new(&service.name, &service.origin));
        let port = match service.port(request.port) {
            Ok(port) => port,
            Err(cause) => {
                let why = format!("it has no port {}", request.port.unwrap_or(80));
                self.story.tell("service", service.origin.to_string(), "refused", why);
                return Verdict::failed(cause);
            }
        };
        let why = format!("known by host {}; port {}", request.host, port.cluster.key.port);
        self.story.tell("service", service.origin.to_string(), "chosen", why);
        match port.route(&request, &mut self.story) {
            Routed::Matched(matched) => {
                let way = Way { parent: Some(&port.cluster), caller: Some(caller) };
                self.matched(&matched, request, &way)
            }
            Routed::NotFound { cause, .. } => Verdict::failed(cause),
        }
    }

    /// Nobody here trusts another domain than the mesh's own, nor has a sidecar in one.
    fn foreign(&mut self, caller: &SpiffeId) -> Option<Verdict> {
        let own = &self.snapshot.bundles().next()?.trust_domain;
        self.snapshot.bundle(caller.trust_domain()).is_none().then(|| {
            let why =
                format!("only trust domain {own} is trusted here: the handshake ends in wrong_trust_domain");
            self.story.tell("tls", caller.to_string(), "refused", why);
            Verdict::of("handshakeRefused")
        })
    }

    /// What a proxy makes of the head before it decides: its refusal, or the path in the spelling that is decided on.
    fn head(&mut self, request: &mut OwnedRequest, refusal: Option<ParseError>) -> Option<Verdict> {
        if let Some(error) = refusal {
            // HTTP/2 has limits of its own.
            let over = if matches!(error, ParseError::OverLimit { .. }) { "over HTTP/1.1: " } else { "" };
            self.story.tell("head", "request", "refused", format!("{over}{}", error.told()));
            return Some(Verdict::failed(error.into()));
        }
        if let Some(path) = normal_path(&request.path) {
            let why = format!("rules and policies see {path}, which is also what is sent on");
            self.story.tell("head", request.path.clone(), "noted", why);
            request.path = path;
        }
        (request.method == "CONNECT").then(|| {
            self.story.tell("route", "CONNECT", "refused", "this method is not carried");
            Verdict::failed(Cause::NotImplemented)
        })
    }

    /// A rule takes it: authorization, filters, backends.
    fn matched(&mut self, matched: &Matched<'_>, mut request: OwnedRequest, way: &Way<'_>) -> Verdict {
        let route = matched.route();
        self.answer.listener = matched.listener.map(of_listener);
        let sources = self.builder.sources_of_rule(matched, way.parent);
        self.answer.route = Some(Rule {
            route: Place::new(&route.name, &route.origin),
            rule: matched.rule_index(),
            rule_name: matched.rule().name().to_owned(),
            matched: matched.match_index(),
            circuit_breaker: policy::route_breaker(matched, &sources, &mut self.story),
            rate_limit: policy::of_route(matched, &sources, &mut self.story),
        });
        let authorization = &matched.policy().authorization;
        self.answer.authorization = authorization.policies().map(policy::action).collect();
        // A gateway's caller has proved nothing; a sidecar knows whom it stands beside.
        let peer = way.parent.and(way.caller.clone());
        let seen = OwnedRequest { peer, ..request.clone() };
        for policy in authorization.audits(&seen) {
            self.story.tell("authorize", policy.origin.to_string(), "noted", "an Audit rule matches");
        }
        if let Err(denied) = authorization.check(&seen, &mut self.story) {
            let policy = Some(denied.policy.origin.to_string());
            return Verdict { policy, ..Verdict::failed(denied.cause) };
        }
        if let Some(verdict) = self.filters(matched, &mut request) {
            return verdict;
        }
        self.answer.forwarded = Some(Seen::of(&request));
        self.backends(matched, &request, way)
    }

    /// What the rule's filters make of it; the redirect that answers, if one does.
    fn filters(&mut self, matched: &Matched<'_>, request: &mut OwnedRequest) -> Option<Verdict> {
        let path = request.path.clone();
        for filter in matched.rule().filters() {
            match filter {
                Filter::RequestHeaders(edits) => {
                    self.story.tell("filters", "request headers", "noted", edits.to_string());
                    edit(request, edits);
                }
                Filter::ResponseHeaders(edits) => {
                    self.story.tell("filters", "response headers", "noted", edits.to_string());
                }
                Filter::Redirect(redirect) => {
                    let port = matched.listener.map_or_else(|| request.port.unwrap_or(80), |l| l.port);
                    let location = redirect.location(request, port, matched.prefix());
                    let why = format!("answers {} with Location {location}", redirect.status);
                    self.story.tell("filters", "redirect", "chosen", why);
                    return Some(Verdict {
                        status: Some(redirect.status),
                        location: Some(location),
                        ..Verdict::of("redirected")
                    });
                }
                Filter::Rewrite(rewrite) => {
                    if let Some(edit) = &rewrite.path {
                        request.path = edit.apply(&path, matched.prefix());
                        let why = format!("path {path} becomes {}", request.path);
                        self.story.tell("filters", "rewrite", "noted", why);
                    }
                    if let Some(host) = &rewrite.hostname {
                        let why = format!("host {} becomes {host}", request.host);
                        self.story.tell("filters", "rewrite", "noted", why);
                        request.host = host.to_string();
                        request.port = None;
                    }
                }
            }
        }
        None
    }

    /// Every backend that may be chosen, as the live function chooses it.
    fn backends(&mut self, matched: &Matched<'_>, request: &OwnedRequest, way: &Way<'_>) -> Verdict {
        let rule = matched.rule();
        self.mirrors(&rule.mirrors);
        let total: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        if total == 0 {
            let cause = rule.choose_backend(&mut Draw(0), &mut self.story).err();
            let cause = cause.expect("without weight there is nothing to choose");
            let subject = format!("{} rule {}", matched.route().origin, matched.rule_index());
            self.story.tell("backend", subject, "refused", cause.as_str());
            return Verdict::failed(cause);
        }
        let (mut drawn, mut failing, mut shares, mut worst) = (0, 0, Vec::new(), None);
        for backend in &rule.backends {
            let weight = u64::from(backend.weight);
            if weight == 0 {
                self.story.tell("backend", backend.key.to_string(), "skipped", "its weight is 0");
                continue;
            }
            let verdict = match rule.choose_backend(&mut Draw(drawn), &mut self.story) {
                Err(cause) => {
                    let verdict = Verdict::failed(cause);
                    self.answer.backends.push(unresolved(backend, verdict.clone()));
                    verdict
                }
                Ok((backend, cluster)) => {
                    let mut sent = request.clone();
                    let edits = self.backend_filters(&backend.filters, &mut sent);
                    self.mirrors(&backend.mirrors);
                    let mut view = unresolved(backend, Verdict::of("forwarded"));
                    view.forwarded = edits.then(|| Seen::of(&sent));
                    self.cluster(matched, cluster, way, &sent, &mut view);
                    let verdict = view.verdict.clone();
                    self.answer.backends.push(view);
                    verdict
                }
            };
            drawn += weight;
            shares.push((weight, verdict.failing_percent));
            if verdict.outcome == "failed" {
                failing += weight;
                worst = Some(verdict);
            }
        }
        match worst {
            Some(verdict) if failing == total => verdict,
            _ => Verdict { failing_percent: Part::of(shares, total), ..Verdict::of("forwarded") },
        }
    }

    /// Where copies of it go.
    fn mirrors(&mut self, mirrors: &[Mirror]) {
        for mirror in mirrors {
            self.story.tell("mirror", mirror.key.to_string(), "noted", mirror.told());
        }
    }

    fn backend_filters(&mut self, filters: &[Filter], request: &mut OwnedRequest) -> bool {
        let mut any = false;
        for filter in filters {
            match filter {
                Filter::RequestHeaders(edits) => {
                    self.story.tell("filters", "request headers of the backend", "noted", edits.to_string());
                    edit(request, edits);
                    any = true;
                }
                Filter::ResponseHeaders(edits) => {
                    self.story.tell("filters", "response headers of the backend", "noted", edits.to_string());
                }
                Filter::Redirect(_) | Filter::Rewrite(_) => {}
            }
        }
        any
    }

    /// What tells the request apart, where the service's balancer goes by that. Its caller's address is not known.
    fn hash(&mut self, cluster: &Cluster, request: &OwnedRequest) -> Option<u64> {
        let hash = cluster.hashing.as_ref()?.key(request, None, &mut SeededRng::new(0)).hash;
        match hash {
            Some(hash) => self.story.tell("endpoint", "hashPolicy", "noted", format!("hash {hash:016x}")),
            None => {
                let why = "nothing that is known here tells it apart: it may go anywhere";
                self.story.tell("endpoint", "hashPolicy", "skipped", why);
            }
        }
        hash
    }

    /// What applies on the way to a cluster, which endpoint takes the request, and whether that lets it in.
    fn cluster(
        &mut self,
        matched: &Matched<'_>,
        cluster: &Arc<Cluster>,
        way: &Way<'_>,
        request: &OwnedRequest,
        view: &mut answer::Backend,
    ) {
        if let Some(service) = self.snapshot.service(&cluster.key.service) {
            view.source = answer::Source::of(&service.origin);
            let count = cluster.endpoints().all().len();
            let why = format!("port {}, {count} endpoints in view", cluster.key.port);
            self.story.tell("service", service.origin.to_string(), "noted", why);
        }
        let sources = self.builder.sources(matched, way.parent, cluster);
        view.timeouts = Some(policy::timeouts(matched, cluster, &sources, &mut self.story));
        view.retry = policy::retry(matched, cluster, &sources, &request.method, &mut self.story);
        policy::hedge(matched, cluster, &sources, &mut self.story);
        view.limits = policy::limits(cluster, &sources, &mut self.story);
        policy::ejection(cluster, &sources, &mut self.story);
        view.circuit_breaker = policy::breaker(cluster, &sources, &mut self.story);
        view.overload = policy::overload(cluster, &sources, &mut self.story);
        view.admission_control = policy::admission(cluster, &sources, &mut self.story);
        view.fault_abort = policy::faults(matched, cluster, &sources, request, &mut self.story);
        view.protocol = Some(format!("{:?}", cluster.protocol));
        view.algorithm = Some(format!("{:?}", cluster.algorithm));
        view.endpoints = cluster.endpoints().all().iter().map(|endpoint| of_endpoint(endpoint)).collect();
        let of_rule = self.builder.sources_of_rule(matched, way.parent);
        if let Some(verdict) = policy::stopped(matched, cluster, &of_rule, &sources, request) {
            view.verdict = verdict;
            return;
        }
        view.verdict.failing_percent = policy::aborted(matched, cluster, request);
        let wanted = Wanted { hash: self.hash(cluster, request), ..Wanted::default() };
        let picked = cluster.pick_explained(Tick::ZERO, &mut SeededRng::new(0), &wanted, &mut self.story);
        let Some(endpoint) = picked else {
            view.verdict = Verdict::failed(Cause::NoHealthyUpstream);
            return;
        };
        let Some(id) = endpoint.spiffe_id() else {
            let why = "plaintext: no sidecar stands before it that would authorize";
            self.story.tell("inbound", endpoint.address().to_string(), "noted", why);
            return;
        };
        let inbound = self.snapshot.inbounds().filter(|inbound| inbound.spiffe_id == *id);
        let serving =
            inbound.filter_map(|i| Some((i, i.ports.iter().find(|port| port.key.is_of(&cluster.key))?)));
        let mut serving: Vec<_> = serving.collect();
        // All instances of a service decide alike; the one that was picked speaks for them.
        serving.sort_by_key(|(inbound, _)| !inbound.name.ends_with(&format!("/{}", endpoint.instance)));
        let Some((inbound, port)) = serving.first() else {
            let why = "what this instance serves has not been told, so its sidecar's answer is not known";
            self.story.tell("inbound", endpoint.address().to_string(), "noted", why);
            return;
        };
        view.inbound = Some(of_inbound(inbound, port));
        if let Some(verdict) = self.inbound(port, way.caller.as_ref(), request) {
            view.verdict = verdict;
            return;
        }
        let of_port = self.builder.sources_of_inbound(&port.key);
        let (rate_limit, overload) = policy::before_application(port, &of_port, &mut self.story);
        if let Some(inbound) = &mut view.inbound {
            (inbound.rate_limit, inbound.overload) = (rate_limit, overload);
        }
    }

    /// Whether the other side lets it in; the refusal if not.
    fn inbound(
        &mut self,
        port: &InboundPort,
        caller: Option<&SpiffeId>,
        request: &OwnedRequest,
    ) -> Option<Verdict> {
        let who = caller.map_or("a caller without identity", SpiffeId::as_str);
        if let Err(cause) = port.admit(caller) {
            self.story.tell(
                "inbound",
                &*port.sni,
                "refused",
                format!("strict mTLS, and {who} proves nothing"),
            );
            return Some(Verdict::failed(cause));
        }
        let mtls = if port.mtls == Mtls::Strict { "strict" } else { "permissive" };
        self.story.tell("inbound", &*port.sni, "chosen", format!("{mtls} mTLS; called by {who}"));
        let seen = OwnedRequest { peer: caller.cloned(), ..request.clone() };
        for policy in port.authorization.audits(&seen) {
            self.story.tell("authorize", policy.origin.to_string(), "noted", "an Audit rule matches");
        }
        let denied = port.authorization.check(&seen, &mut self.story).err()?;
        let policy = Some(denied.policy.origin.to_string());
        Some(Verdict { policy, ..Verdict::failed(denied.cause) })
    }
}

/// Chance that always draws this number.
struct Draw(u64);

impl Rng for Draw {
    fn next_u64(&mut self) -> u64 {
        self.0
    }

    fn below(&mut self, _: u64) -> u64 {
        self.0
    }
}

fn of_listener(listener: &Arc<Listener>) -> Place {
    Place::new(&listener.name, &listener.origin)
}

fn unresolved(backend: &meshwork_decision::Backend, verdict: Verdict) -> answer::Backend {
    answer::Backend {
        service: backend.key.service.to_string(),
        port: backend.key.port,
        source: None,
        weight: backend.weight,
        verdict,
        protocol: None,
        algorithm: None,
        limits: None,
        circuit_breaker: None,
        overload: None,
        admission_control: None,
        fault_abort: None,
        timeouts: None,
        retry: None,
        forwarded: None,
        endpoints: Vec::new(),
        inbound: None,
    }
}

fn of_endpoint(endpoint: &Endpoint) -> answer::Endpoint {
    let excluded = endpoint.excluded.map(|why| match why {
        Exclusion::Unhealthy => "unhealthy",
        Exclusion::Draining => "draining",
        Exclusion::WrongIdentity => "wrongIdentity",
    });
    answer::Endpoint {
        address: endpoint.address().to_string(),
        connect_to: endpoint.http_address().to_string(),
        spiffe_id: endpoint.spiffe_id().map(ToString::to_string),
        instance: endpoint.instance.to_string(),
        workload: endpoint.workload.to_string(),
        version: endpoint.version.to_string(),
        zone: endpoint.zone.to_string(),
        weight: endpoint.weight,
        health: match endpoint.health {
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
            Health::Draining => "draining",
            Health::Suspect => "suspect",
        },
        excluded,
        candidate: excluded.is_none(),
    }
}

fn of_inbound(inbound: &Inbound, port: &InboundPort) -> answer::Inbound {
    answer::Inbound {
        instance: inbound.name.to_string(),
        spiffe_id: inbound.spiffe_id.to_string(),
        mtls: match port.mtls {
            Mtls::Strict => "strict",
            Mtls::Permissive => "permissive",
        },
        app_port: port.app_port,
        rate_limit: None,
        overload: None,
    }
}

fn edit(request: &mut OwnedRequest, edits: &HeaderEdits) {
    for edit in edits.iter() {
        match edit {
            HeaderEdit::Remove(name) => request.headers.retain(|(there, _)| there != name),
            HeaderEdit::Set(name, value) => {
                request.headers.retain(|(there, _)| there != name);
                request.headers.push((name.to_owned(), value.to_owned()));
            }
            HeaderEdit::Add(name, value) => request.headers.push((name.to_owned(), value.to_owned())),
        }
    }
}

/// Whether both ports have the same listeners, at different addresses.
fn is_alike(one: &Binding, other: &Binding) -> bool {
    (one.port, one.protocol) == (other.port, other.protocol)
        && one.listeners.iter().map(|l| &l.name).eq(other.listeners.iter().map(|l| &l.name))
}
