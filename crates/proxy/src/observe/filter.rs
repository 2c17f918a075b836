//! What a probe looks for.

use meshwork_base::SpiffeId;
use meshwork_decision::RequestView;
use meshwork_messages::v1::{RequestFilter, request_filter::HeaderMatch};

/// A filter, read once.
pub(super) struct Filter {
    said: RequestFilter,
}

impl Filter {
    pub(super) fn new(mut said: RequestFilter) -> Self {
        said.host = said.host.trim_end_matches('.').to_ascii_lowercase();
        Self { said }
    }

    pub(super) fn matches(&self, request: &impl RequestView, from: Option<&SpiffeId>) -> bool {
        let RequestFilter { method, host, path, query, headers, present, from: wanted } = &self.said;
        let is = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        is(method, request.method())
            && (host.is_empty() || takes_host(host, request.host()))
            && (path.is_empty() || takes_path(path, request.path()))
            && is(query, request.query().unwrap_or_default())
            && is(wanted, from.map_or("", SpiffeId::as_str))
            && headers.iter().all(|HeaderMatch { name, value }| {
                let name = name.to_ascii_lowercase();
                request.header(&name).any(|is| is == value.as_bytes())
            })
            && present.iter().all(|name| request.header(&name.to_ascii_lowercase()).next().is_some())
    }
}

fn takes_host(wanted: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match wanted.strip_prefix("*.") {
        Some(domain) => host.strip_suffix(domain).is_some_and(|below| below.ends_with('.')),
        None => wanted == host,
    }
}

fn takes_path(wanted: &str, path: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(start) => path.starts_with(start),
        None => wanted == path,
    }
}
