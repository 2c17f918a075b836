//! Asking proxies: probes that end with whoever asks, and who can be asked.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::http::StatusCode;
use meshwork_base::{Rng as _, ThreadRng};
use meshwork_messages::v1::Probe;
use meshwork_process::Problem;
use meshwork_xds::server::{Hub, Observed, Observing, Proxy};

use crate::codes;

/// Arms a probe on all proxies, or on one, as long as the answer lives.
///
/// # Errors
/// As many are armed as may be.
pub(crate) fn observe(hub: &Hub, probe: Probe, proxy: Option<String>) -> Result<Observing, Problem> {
    hub.observe(probe, proxy).map_err(|error| {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many probes")
            .detail(error.to_string())
            .code(codes::TOO_MANY_PROBES)
    })
}

/// Who of the proxies has answered a question, by id.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    pub(crate) answered: BTreeSet<String>,
    /// Those that have not answered in time.
    pub(crate) silent: BTreeSet<String>,
    /// Those whose version cannot answer.
    pub(crate) unable: BTreeSet<String>,
    /// Those that are not connected, and are not known to be gone.
    pub(crate) absent: BTreeSet<String>,
}

impl Answered {
    /// Nobody has been asked yet; `able`: who can answer.
    pub(crate) fn nobody(hub: &Hub, able: impl Fn(&Proxy) -> bool) -> Self {
        let mut who = Self { absent: hub.reach(0).absent, ..Self::default() };
        for proxy in hub.proxies().into_iter().filter(|proxy| proxy.connected) {
            let which = if able(&proxy) { &mut who.silent } else { &mut who.unable };
            which.insert(proxy.node.id);
        }
        who
    }
}

/// Asks all proxies one question that each answers at once, and waits for them, but no longer than `patience`. `heard` is
/// given what comes and says whether it is the last of its proxy. The id and the time of the question are made here.
///
/// # Errors
/// As many probes are armed as may be.
pub(crate) async fn all(
    hub: &Hub,
    question: Probe,
    patience: Duration,
    able: impl Fn(&Proxy) -> bool,
    mut heard: impl FnMut(Observed) -> bool,
) -> Result<Answered, Problem> {
    let mut who = Answered::nobody(hub, able);
    let lasts_ms = u32::try_from(patience.as_millis()).expect("a few seconds");
    let id = ThreadRng::new().next_u64();
    let mut observing = observe(hub, Probe { id, lasts_ms, ..question }, None)?;
    let all = async {
        while !who.silent.is_empty() {
            let Some(observed) = observing.next().await else { return };
            let proxy = observed.proxy.node.id.clone();
            if heard(observed) && who.silent.remove(&proxy) {
                who.answered.insert(proxy);
            }
        }
    };
    // Who does not answer in time is named.
    let _ = tokio::time::timeout(patience, all).await;
    Ok(who)
}

/// Whether this proxy is connected.
///
/// # Errors
/// It is not.
pub(crate) fn connected(hub: &Hub, wanted: &str) -> Result<(), Problem> {
    if hub.proxies().iter().any(|proxy| proxy.connected && proxy.node.id == wanted) {
        return Ok(());
    }
    let detail = format!("no proxy `{wanted}` is connected; `meshwork proxies` lists them");
    Err(Problem::new(StatusCode::NOT_FOUND, "no such proxy").detail(detail).code(codes::NO_SUCH_PROXY))
}

/// Whether it keeps requests, and knows of taps and counters.
pub(crate) fn records(proxy: &Proxy) -> bool {
    has(proxy, meshwork_messages::RECORD)
}

/// Whether it tells what it has under way.
pub(super) fn tells_under_way(proxy: &Proxy) -> bool {
    has(proxy, meshwork_messages::UNDER_WAY)
}

fn has(proxy: &Proxy, wanted: &str) -> bool {
    proxy.node.features.iter().any(|feature| feature == wanted)
}
