//! What proxies keep from a service, all of them together.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Top;

/// What one proxy keeps from one port of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Kept {
    pub(super) service: String,
    port: u32,
    in_flight: u32,
    limit: u32,
    queued: u32,
    shed: u64,
}

/// What becomes of that, of all ports and proxies.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Overload {
    in_flight: u32,
    limit: u32,
    queued: u32,
    shed_per_second: f64,
}

impl fmt::Display for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.in_flight, self.limit)?;
        if self.queued > 0 {
            write!(f, ", {} wait", self.queued)?;
        }
        if self.shed_per_second > 0.0 {
            write!(f, ", {:.1}/s sent away", self.shed_per_second)?;
        }
        Ok(())
    }
}

impl Overload {
    pub(super) fn of(service: &str, before: &Top, now: &Top, seconds: f64) -> Option<Self> {
        let mut all: Option<Self> = None;
        let mut shed = 0;
        for proxy in &now.proxies {
            let earlier = before.proxies.iter().find(|earlier| earlier.id == proxy.id);
            for is in proxy.overloads.iter().filter(|is| is.service == service) {
                let all = all.get_or_insert(Self { in_flight: 0, limit: 0, queued: 0, shed_per_second: 0.0 });
                all.in_flight += is.in_flight;
                all.limit += is.limit;
                all.queued += is.queued;
                // Of a proxy that did not answer before it is not known since when it counts.
                let Some(earlier) = earlier else { continue };
                let same = |was: &&Kept| was.service == is.service && was.port == is.port;
                // One that started anew counts from nothing.
                let was = earlier.overloads.iter().find(same).filter(|was| was.shed <= is.shed);
                shed += is.shed - was.map_or(0, |was| was.shed);
            }
        }
        let mut all = all?;
        if seconds > 0.0 {
            all.shed_per_second = shed as f64 / seconds;
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Proxy;
    use super::*;

    fn answer(proxies: &[(&str, u32, u64)]) -> Top {
        let proxies = proxies.iter().map(|(id, queued, shed)| Proxy {
            id: (*id).to_owned(),
            services: Vec::new(),
            breakers: Vec::new(),
            admissions: Vec::new(),
            overloads: vec![Kept {
                service: "shop/web".to_owned(),
                port: 80,
                in_flight: 3,
                limit: 8,
                queued: *queued,
                shed: *shed,
            }],
        });
        Top { at_ms: 0, proxies: proxies.collect(), silent: Vec::new() }
    }

    #[test]
    fn what_all_proxies_keep_is_added_up() {
        let before = answer(&[("a", 0, 10), ("anew", 0, 90)]);
        let now = answer(&[("a", 2, 15), ("anew", 0, 1), ("new", 0, 1_000)]);
        let kept = Overload::of("shop/web", &before, &now, 2.0).unwrap();
        assert_eq!(kept, Overload { in_flight: 9, limit: 24, queued: 2, shed_per_second: 3.0 });
        assert_eq!(kept.to_string(), "9/24, 2 wait, 3.0/s sent away");
        assert_eq!(Overload::of("shop/cart", &before, &now, 2.0), None);
        let calm = Overload::of("shop/web", &now, &now, 2.0).unwrap();
        assert_eq!(calm.to_string(), "9/24, 2 wait");
    }
}
