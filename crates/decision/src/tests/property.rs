//! The index against a matcher that looks at every rule of every route.

use std::cmp::Reverse;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

#[derive(Clone, Debug)]
struct NaiveMatch {
    path: (u8, &'static str),
    method: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

#[derive(Clone, Debug)]
struct NaiveRoute {
    hosts: Vec<&'static str>,
    created: i64,
    rules: Vec<Vec<NaiveMatch>>,
}

const HOSTS: &[&str] = &["a.example.com", "b.example.com", "*.example.com", "*.com", "x.y.example.com", ""];
const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b"];
const PATTERNS: &[&str] = &["/a.*", "/[ab]", ".*/c", "/a/b|/b"];

fn pairs() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    prop::collection::vec((select(&["x", "y"][..]), select(&["1", "2"][..])), 0..3).prop_map(|mut v| {
        v.sort_unstable();
        v.dedup_by_key(|(name, _)| *name);
        v
    })
}

fn naive_match() -> impl Strategy<Value = NaiveMatch> {
    let path = prop_oneof![
        select(PATHS).prop_map(|p| (0, p)),
        select(PATHS).prop_map(|p| (1, p)),
        select(PATTERNS).prop_map(|p| (2, p)),
    ];
    (path, prop::option::of(select(&["GET", "POST"][..])), pairs(), pairs())
        .prop_map(|(path, method, headers, query)| NaiveMatch { path, method, headers, query })
}

fn naive_route() -> impl Strategy<Value = NaiveRoute> {
    let rules = prop::collection::vec(prop::collection::vec(naive_match(), 1..3), 1..4);
    (prop::collection::vec(select(HOSTS), 1..3), 0i64..3, rules)
        .prop_map(|(hosts, created, rules)| NaiveRoute { hosts, created, rules })
}

fn request() -> impl Strategy<Value = OwnedRequest> {
    let host = select(&["a.example.com", "B.Example.Com:80", "x.y.example.com", "z.com", "org"][..]);
    let path =
        select(&["/", "/a", "/a/", "/a/b", "/a/b/c", "/a//b", "/ab", "/abc/d", "/b", "/c", "/x/c"][..]);
    (host, path, select(&["GET", "POST"][..]), pairs(), pairs()).prop_map(
        |(host, path, method, headers, query)| {
            let query: Vec<_> = query.iter().map(|(n, v)| format!("{n}={v}")).collect();
            let mut request = OwnedRequest::get(host, &format!("{path}?{}", query.join("&"))).method(method);
            for (name, value) in headers {
                request = request.with_header(name, value);
            }
            request
        },
    )
}

impl NaiveMatch {
    fn message(&self) -> v1::Match {
        let (kind, text) = self.path;
        let fields = |list: &[(&str, &str)]| list.iter().map(|(n, v)| field(n, v)).collect();
        v1::Match {
            path: Some([exact, prefix, regex][usize::from(kind)](text)),
            method: self.method.unwrap_or_default().into(),
            headers: fields(&self.headers),
            query: fields(&self.query),
        }
    }

    fn holds(&self, request: &OwnedRequest) -> bool {
        let path = match self.path {
            (0, text) => PathMatch::Exact(text.into()),
            (1, text) => PathMatch::prefix(text),
            (_, text) => PathMatch::Regex(Pattern::new(text).unwrap()),
        };
        let query = request.query.as_deref().unwrap_or_default();
        path.matches(&request.path)
            && self.method.is_none_or(|m| m == request.method)
            && self.headers.iter().all(|(n, v)| request.headers.iter().any(|(a, b)| a == n && b == v))
            && self.query.iter().all(|(n, v)| query.split('&').any(|p| p == format!("{n}={v}")))
    }

    /// Greater is better; Gateway API's list, word by word.
    fn rank(&self) -> impl Ord + use<> {
        let (kind, text) = self.path;
        let length = if kind == 1 { text.trim_end_matches('/').len() } else { 0 };
        (Reverse(kind), length, self.method.is_some(), self.headers.len(), self.query.len())
    }
}

fn naively(routes: &[NaiveRoute], request: &OwnedRequest) -> Option<String> {
    let host = request.host.to_ascii_lowercase();
    let mut best = None;
    for (r, route) in routes.iter().enumerate() {
        for hostname in &route.hosts {
            let pattern = HostPattern::parse(hostname).unwrap();
            if !pattern.matches(&host) {
                continue;
            }
            for (u, matches) in route.rules.iter().enumerate() {
                for (m, matched) in matches.iter().enumerate().filter(|(_, m)| m.holds(request)) {
                    let ties = (route.created, r, u, m);
                    let rank = (pattern.specificity(), matched.rank(), Reverse(ties));
                    if best.as_ref().is_none_or(|(b, _)| rank > *b) {
                        best = Some((rank, format!("ns/r{r:02}#{u}.{m}")));
                    }
                }
            }
        }
    }
    best.map(|(_, name)| name)
}

fn changes(routes: &[NaiveRoute]) -> Vec<Change> {
    let of = |(r, naive): (usize, &NaiveRoute)| {
        let rules = naive.rules.iter().map(|m| rule(m.iter().map(NaiveMatch::message).collect())).collect();
        route(&format!("ns/r{r:02}"), naive.created, &naive.hosts, rules)
    };
    routes.iter().enumerate().map(of).chain([listener("ns/gw/web", 80, "")]).collect()
}

fn found(snapshot: &Snapshot, request: &OwnedRequest) -> Option<String> {
    Some(routed(snapshot, request)).filter(|text| text.contains('#'))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn the_index_agrees_with_looking_at_everything(
        routes in prop::collection::vec(naive_route(), 0..12),
        requests in prop::collection::vec(request(), 20),
    ) {
        let snapshot = snapshot(changes(&routes));
        for request in requests {
            prop_assert_eq!(found(&snapshot, &request), naively(&routes, &request), "{:?}", request);
        }
    }

    /// However routes come and go: what is built step by step decides like what is built at once.
    #[test]
    fn building_step_by_step_decides_like_building_at_once(
        steps in prop::collection::vec((0usize..6, prop::option::of(naive_route()), any::<bool>()), 1..20),
        requests in prop::collection::vec(request(), 10),
    ) {
        let mut builder = SnapshotBuilder::new();
        let mut held: Vec<Option<NaiveRoute>> = vec![None; 6];
        build(&mut builder, [listener("ns/gw/web", 80, "")]);
        for (at, next, build_now) in steps {
            let name = format!("HTTPRoute/ns/r{at:02}");
            let change = match &next {
                Some(naive) => {
                    let rules =
                        naive.rules.iter().map(|m| rule(m.iter().map(NaiveMatch::message).collect())).collect();
                    route(&format!("ns/r{at:02}"), naive.created, &naive.hosts, rules)
                }
                None => Change::remove::<v1::Route>(&name),
            };
            held[at] = next;
            prop_assert_eq!(builder.apply([change]), []);
            if build_now {
                builder.build();
            }
        }
        let step_by_step = builder.build();
        // An absent route keeps its place, so that names stay.
        let none = NaiveRoute { hosts: vec!["absent.invalid"], created: 0, rules: vec![] };
        let routes: Vec<_> = held.into_iter().map(|r| r.unwrap_or_else(|| none.clone())).collect();
        for request in requests {
            prop_assert_eq!(found(&step_by_step, &request), naively(&routes, &request));
        }
    }
}
