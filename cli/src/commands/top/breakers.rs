//! The circuit breakers of services, of their endpoints, and of routes, in all proxies together; and who is held back.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Top;

/// One breaker in one proxy.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Breaker {
    service: String,
    port: u32,
    state: String,
    /// What that would be if its policy did not only observe.
    #[serde(default)]
    observed: String,
    /// It is that one's, and no service's. An older control plane tells of services alone.
    #[serde(default)]
    route: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    headroom_percent: Option<u32>,
}

/// How one proxy holds back calls to one port.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Admission {
    service: String,
    rejection_percent: u32,
}

/// What becomes of that, in all proxies.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Breakers {
    pub(super) states: BTreeMap<String, usize>,
    pub(super) headroom_percent: Option<u32>,
    pub(super) held_back_percent: Option<u32>,
}

impl Breakers {
    fn add(&mut self, breaker: &Breaker) {
        let Breaker { port, route, address, .. } = breaker;
        let state = match &*breaker.observed {
            "" => breaker.state.clone(),
            observed => format!("{}, would be {observed}", breaker.state),
        };
        // An endpoint that is closed is told for its headroom alone.
        let name = match (&**route, &**address) {
            ("", "") => Some(format!("{state} (:{port})")),
            ("", address) => (state != "closed").then(|| format!("{state} ({address})")),
            _ => Some(state),
        };
        if let Some(name) = name {
            *self.states.entry(name).or_default() += 1;
        }
        let both = self.headroom_percent.into_iter().chain(breaker.headroom_percent);
        self.headroom_percent = both.min();
    }
}

/// Those of services, and those of routes.
pub(super) fn of(now: &Top) -> (BTreeMap<&str, Breakers>, BTreeMap<&str, Breakers>) {
    let (mut services, mut routes) = (BTreeMap::<&str, Breakers>::new(), BTreeMap::<&str, Breakers>::new());
    for breaker in now.proxies.iter().flat_map(|proxy| &proxy.breakers) {
        let of = match &*breaker.route {
            "" => services.entry(&breaker.service),
            route => routes.entry(route),
        };
        of.or_default().add(breaker);
    }
    for admission in now.proxies.iter().flat_map(|proxy| &proxy.admissions) {
        let of = services.entry(&admission.service).or_default();
        of.held_back_percent = of.held_back_percent.max(Some(admission.rejection_percent));
    }
    (services, routes)
}

#[cfg(test)]
impl Breaker {
    /// Of a service, or of a route.
    pub(super) fn of_test(service: &str, route: &str, state: &str, headroom_percent: Option<u32>) -> Self {
        let [service, route, state] = [service, route, state].map(str::to_owned);
        let (observed, address) = (String::new(), String::new());
        Self { service, port: 80, state, observed, route, address, headroom_percent }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Proxy;
    use super::*;

    #[test]
    fn breakers_are_told_by_service_and_route_with_the_one_that_is_nearest_to_opening() {
        let endpoint = |address: &str, state: &str, headroom| Breaker {
            address: address.to_owned(),
            ..Breaker::of_test("shop/web", "", state, headroom)
        };
        let proxy = |breakers, percent| Proxy {
            id: String::new(),
            services: Vec::new(),
            breakers,
            overloads: Vec::new(),
            admissions: vec![Admission { service: "shop/cart".to_owned(), rejection_percent: percent }],
        };
        let pay = |headroom| Breaker::of_test("", "shop/edge/pay", "closed", Some(headroom));
        let observed = "half_open".to_owned();
        let observing = Breaker { observed, ..Breaker::of_test("shop/new", "", "closed", Some(0)) };
        let now = Top {
            at_ms: 0,
            proxies: vec![
                proxy(vec![endpoint("10.0.0.1:80", "open", Some(0)), pay(30)], 4),
                proxy(vec![endpoint("10.0.0.2:80", "closed", Some(20)), pay(9)], 60),
                proxy(vec![Breaker::of_test("shop/list", "", "open", None), observing], 0),
            ],
            silent: Vec::new(),
        };
        let (services, routes) = of(&now);
        let states = |states: &[(&str, usize)]| -> BTreeMap<String, usize> {
            states.iter().map(|(state, proxies)| ((*state).to_owned(), *proxies)).collect()
        };
        let told = |of: &[(&str, usize)], headroom_percent, held_back_percent| Breakers {
            states: states(of),
            headroom_percent,
            held_back_percent,
        };
        assert_eq!(services["shop/web"], told(&[("open (10.0.0.1:80)", 1)], Some(0), None));
        assert_eq!(services["shop/list"], told(&[("open (:80)", 1)], None, None), "an operator forces it");
        assert_eq!(services["shop/new"], told(&[("closed, would be half_open (:80)", 1)], Some(0), None));
        assert_eq!(services["shop/cart"], told(&[], None, Some(60)));
        assert_eq!(routes["shop/edge/pay"], told(&[("closed", 2)], Some(9), None));
        assert_eq!(routes.len(), 1);
    }
}
